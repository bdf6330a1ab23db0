gptoss_test(coordinator gptoss_coordinator)
target_sources(test_coordinator PRIVATE world.c)
gptoss_test(times gptoss_coordinator)
target_sources(test_times PRIVATE world.c)
