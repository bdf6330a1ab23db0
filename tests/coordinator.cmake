gptoss_test(coordinator gptoss_coordinator)
target_sources(test_coordinator PRIVATE world.c)
