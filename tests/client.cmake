gptoss_test(client_answer gptoss_client)
foreach(name client client_terminal)
  gptoss_test(${name} gptoss_client PkgConfig::zmq PkgConfig::jansson Threads::Threads)
  add_dependencies(test_${name} gptoss-client)
endforeach()
gptoss_test(client_watch gptoss_client PkgConfig::jansson m)

# Bodies of HTTP requests, fuzzed for a while; longer: tests/fuzz/run-gateway SOURCE BINARY -max_total_time=600
add_test(NAME gateway_fuzz
  COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/run-gateway ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
set_tests_properties(gateway_fuzz PROPERTIES TIMEOUT 300 SKIP_RETURN_CODE 77 LABELS long RESOURCE_LOCK fuzz)
