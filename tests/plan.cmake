gptoss_test(plan gptoss_plan)
