gptoss_test(plan gptoss_plan)
if(TARGET gptoss_kernels)
  gptoss_test(plan_footprint gptoss_plan gptoss_kernels)
endif()
