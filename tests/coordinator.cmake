gptoss_test(coordinator gptoss_coordinator)
target_sources(test_coordinator PRIVATE world.c)
gptoss_test(prefix gptoss_coordinator)
target_sources(test_prefix PRIVATE world.c)
