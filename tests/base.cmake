gptoss_test(base gptoss_base)
gptoss_test(cli gptoss_base)
