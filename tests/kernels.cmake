gptoss_test(kernels gptoss_kernels)
gptoss_test(kernels_sample gptoss_kernels)
gptoss_test(kernels_stage gptoss_kernels)
gptoss_test(golden gptoss_kernels PkgConfig::jansson)
# With sanitizers, on busy cores.
set_tests_properties(kernels kernels_stage golden PROPERTIES TIMEOUT 240)

# Those without SIMD take seconds to minutes.
add_test(NAME golden_slow COMMAND test_golden cpu:plain fast:avxvnni fast:avx2 fast:plain reference
  WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
set_tests_properties(golden_slow PROPERTIES TIMEOUT 1800 LABELS long)

# Not a test: times whole steps of a stage (tests/cpu_speed.c says how it is called).
add_executable(cpu_speed cpu_speed.c)
target_link_libraries(cpu_speed PRIVATE gptoss_kernels gptoss_flags)
set_target_properties(cpu_speed PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)

if(GPTOSS_HAVE_CUDA)
  gptoss_test(cuda gptoss_kernels)
  add_test(NAME golden_cuda COMMAND test_golden cuda WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(cuda golden_cuda PROPERTIES
    TIMEOUT 300 SKIP_RETURN_CODE 77 LABELS gpu RESOURCE_LOCK gpu)
  # Not a test: times whole steps of a stage (tests/cuda_speed.c says how it is called).
  add_executable(cuda_speed EXCLUDE_FROM_ALL cuda_speed.c)
  target_link_libraries(cuda_speed PRIVATE gptoss_kernels gptoss_flags)
  set_target_properties(cuda_speed PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
endif()
