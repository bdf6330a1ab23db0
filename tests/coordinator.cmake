gptoss_test(coordinator gptoss_coordinator)
target_sources(test_coordinator PRIVATE world.c)
gptoss_test(prefix gptoss_coordinator)
target_sources(test_prefix PRIVATE world.c)
gptoss_test(times gptoss_coordinator)
target_sources(test_times PRIVATE world.c)
gptoss_test(sched gptoss_coordinator m)
target_sources(test_sched PRIVATE world.c)
gptoss_test(wire gptoss_coordinator)

# The coordinator's own time a step, to be run by hand; the test only holds that it runs.
add_executable(coordinator_speed coordinator_speed.c)
target_link_libraries(coordinator_speed PRIVATE gptoss_coordinator gptoss_flags)
target_compile_definitions(coordinator_speed PRIVATE GPTOSS_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
set_target_properties(coordinator_speed PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
add_test(NAME coordinator_speed COMMAND coordinator_speed 64 100 100)
set_tests_properties(coordinator_speed PROPERTIES TIMEOUT 60 LABELS unit)
gptoss_test(metrics gptoss_coordinator m)
target_sources(test_metrics PRIVATE world.c)
gptoss_test(seen gptoss_coordinator)
target_sources(test_seen PRIVATE world.c)
gptoss_test(trace gptoss_coordinator)
target_sources(test_trace PRIVATE world.c)
gptoss_test(journal gptoss_coordinator gptoss_journal)
target_sources(test_journal PRIVATE world.c)
gptoss_test(admit gptoss_coordinator)
target_sources(test_admit PRIVATE world.c)
gptoss_test(coordinator_transport gptoss_coordinator)
# 1,000 schedules here; the measure is 10,000: build/release/tests/test_simulation 10000
gptoss_test(simulation gptoss_coordinator)
target_sources(test_simulation PRIVATE simulation.c simulation_ranks.c simulation_clients.c world.c)

# What comes from outside, fuzzed for a while; longer: tests/fuzz/run-coordinator SOURCE BINARY wire
# -max_total_time=600
foreach(name wire journal harmony)
  add_test(NAME ${name}_fuzz COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/run-coordinator
    ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR} ${name})
  set_tests_properties(${name}_fuzz PROPERTIES
    TIMEOUT 600 SKIP_RETURN_CODE 77 LABELS long RESOURCE_LOCK fuzz)
endforeach()
