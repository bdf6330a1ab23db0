gptoss_test(worker_step gptoss_worker gptoss_proto)
gptoss_test(worker_times gptoss_worker gptoss_proto)

# Every rank runs the same cases. Debian's Open MPI leaks at exit: leaks are not looked for in what calls
# MPI_Init.
set(worker_mpirun mpirun --oversubscribe --allow-run-as-root)
add_executable(test_transport test_transport.c)
target_link_libraries(test_transport PRIVATE gptoss_worker gptoss_base gptoss_flags PkgConfig::cmocka)
set_target_properties(test_transport PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
foreach(ranks 2 3)
  add_test(NAME transport_${ranks}_ranks COMMAND ${worker_mpirun} -np ${ranks} $<TARGET_FILE:test_transport>)
  set_tests_properties(transport_${ranks}_ranks PROPERTIES TIMEOUT 60 SKIP_RETURN_CODE 77 LABELS unit
    ENVIRONMENT ASAN_OPTIONS=detect_leaks=0)
endforeach()

if(GPTOSS_HAVE_CUDA)
  add_executable(test_transport_gpu test_transport_gpu.c)
  target_link_libraries(test_transport_gpu PRIVATE
    gptoss_worker gptoss_base gptoss_flags CUDA::cudart_static PkgConfig::cmocka)
  set_target_properties(test_transport_gpu PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  foreach(transport ipc nccl)
    add_test(NAME transport_${transport}
      COMMAND ${worker_mpirun} -np 2 $<TARGET_FILE:test_transport_gpu> ${transport})
    set_tests_properties(transport_${transport} PROPERTIES TIMEOUT 120 SKIP_RETURN_CODE 77 LABELS unit)
  endforeach()
endif()

# A small coordinator that plays with real ranks; each CTest test is one group of its cases.
add_executable(test_worker test_worker.c)
target_link_libraries(test_worker PRIVATE
  gptoss_proto PkgConfig::zmq PkgConfig::jansson PkgConfig::cmocka gptoss_flags)
target_compile_definitions(test_worker PRIVATE
  GPTOSS_SOURCE_DIR="${PROJECT_SOURCE_DIR}" GPTOSS_BINARY_DIR="${PROJECT_BINARY_DIR}")
set_target_properties(test_worker PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
add_dependencies(test_worker gptoss-worker)
foreach(group pipeline refusals silence)
  add_test(NAME worker_${group} COMMAND test_worker ${group} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(worker_${group} PROPERTIES TIMEOUT 120 LABELS e2e
    ENVIRONMENT ASAN_OPTIONS=detect_leaks=0)
endforeach()
