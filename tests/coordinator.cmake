gptoss_test(coordinator gptoss_coordinator)
target_sources(test_coordinator PRIVATE world.c)
gptoss_test(wire gptoss_coordinator)

# The coordinator's own time a step, to be run by hand; the test only holds that it runs.
add_executable(coordinator_speed coordinator_speed.c)
target_link_libraries(coordinator_speed PRIVATE gptoss_coordinator gptoss_flags)
target_compile_definitions(coordinator_speed PRIVATE GPTOSS_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
set_target_properties(coordinator_speed PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
add_test(NAME coordinator_speed COMMAND coordinator_speed 64 100 100)
set_tests_properties(coordinator_speed PROPERTIES TIMEOUT 60 LABELS unit)
