# End-to-end tests: real processes. Debian's own Python has zmq and protobuf; where they are missing
# the tests say so and are skipped.
find_program(GPTOSS_PYTHON NAMES python3 PATHS /usr/bin NO_DEFAULT_PATH)
foreach(name golden crowd sharing refusals programs seeing)
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/e2e/${name}.py)
    add_test(NAME e2e-${name} COMMAND ${GPTOSS_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/e2e/${name}.py)
    set_tests_properties(e2e-${name} PROPERTIES
      TIMEOUT 280 SKIP_RETURN_CODE 77 LABELS e2e RUN_SERIAL TRUE
      ENVIRONMENT "GPTOSS_TEST_SOURCE=${PROJECT_SOURCE_DIR};GPTOSS_TEST_BUILD=${PROJECT_BINARY_DIR};PYTHONDONTWRITEBYTECODE=1")
  endif()
endforeach()

if(GPTOSS_HAVE_CUDA)
  add_test(NAME e2e-gpu-golden COMMAND ${GPTOSS_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/e2e/gpu_golden.py
    ${PROJECT_BINARY_DIR}/bin ${PROJECT_SOURCE_DIR}/models/gptoss-tiny-mxfp4.gguf
    ${PROJECT_SOURCE_DIR}/models/gptoss-tiny-mxfp4.golden.json)
  set_tests_properties(e2e-gpu-golden PROPERTIES
    TIMEOUT 280 SKIP_RETURN_CODE 77 LABELS "e2e;gpu" RESOURCE_LOCK gpu)
endif()
