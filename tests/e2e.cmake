# End-to-end tests: real processes. Debian's own Python has zmq and protobuf; where they are missing
# the tests say so and are skipped.
find_program(GPTOSS_PYTHON NAMES python3 PATHS /usr/bin NO_DEFAULT_PATH)
foreach(name golden crowd sharing refusals programs seeing faults security journal clients page)
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/e2e/${name}.py)
    add_test(NAME e2e-${name} COMMAND ${GPTOSS_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/e2e/${name}.py)
    set_tests_properties(e2e-${name} PROPERTIES
      TIMEOUT 280 SKIP_RETURN_CODE 77 LABELS e2e RUN_SERIAL TRUE
      ENVIRONMENT "GPTOSS_TEST_SOURCE=${PROJECT_SOURCE_DIR};GPTOSS_TEST_BUILD=${PROJECT_BINARY_DIR};PYTHONDONTWRITEBYTECODE=1")
  endif()
endforeach()

# The gateway over plain HTTP; and through the openai package, with the Python that
# GPTOSS_TEST_OPENAI_PYTHON names where Debian's has none: skipped otherwise.
foreach(name gateway gateway_openai)
  add_test(NAME e2e-${name} COMMAND ${GPTOSS_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/e2e/${name}.py)
  set_tests_properties(e2e-${name} PROPERTIES
    TIMEOUT 280 SKIP_RETURN_CODE 77 LABELS e2e RUN_SERIAL TRUE
    ENVIRONMENT "GPTOSS_TEST_SOURCE=${PROJECT_SOURCE_DIR};GPTOSS_TEST_BUILD=${PROJECT_BINARY_DIR};PYTHONDONTWRITEBYTECODE=1")
endforeach()

# Forms that take a while: gptoss_long_test(NAME SCRIPT TIMEOUT LABELS ARGUMENTS…). Longer ones by hand:
# chaos.py --kills 100, soak.py --seconds 3600.
function(gptoss_long_test name script timeout labels)
  add_test(NAME e2e-${name} COMMAND ${GPTOSS_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/e2e/${script} ${ARGN})
  set_tests_properties(e2e-${name} PROPERTIES
    TIMEOUT ${timeout} SKIP_RETURN_CODE 77 LABELS "${labels}" RUN_SERIAL TRUE
    ENVIRONMENT "GPTOSS_TEST_SOURCE=${PROJECT_SOURCE_DIR};GPTOSS_TEST_BUILD=${PROJECT_BINARY_DIR};PYTHONDONTWRITEBYTECODE=1")
endfunction()
gptoss_long_test(chaos chaos.py 120 e2e --kills 4 --requests 24)
gptoss_long_test(soak soak.py 180 e2e --seconds 30)
gptoss_long_test(chaos-long chaos.py 600 "e2e;long" --kills 100)
gptoss_long_test(soak-long soak.py 480 "e2e;long" --seconds 300)

if(GPTOSS_HAVE_CUDA)
  add_test(NAME e2e-gpu-golden COMMAND ${GPTOSS_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/e2e/gpu_golden.py
    ${PROJECT_BINARY_DIR}/bin ${PROJECT_SOURCE_DIR}/models/gptoss-tiny-mxfp4.gguf
    ${PROJECT_SOURCE_DIR}/models/gptoss-tiny-mxfp4.golden.json)
  set_tests_properties(e2e-gpu-golden PROPERTIES
    TIMEOUT 280 SKIP_RETURN_CODE 77 LABELS "e2e;gpu" RESOURCE_LOCK gpu)
  add_test(NAME e2e-gpu-pair COMMAND ${GPTOSS_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/e2e/gpu_pair.py
    ${PROJECT_BINARY_DIR}/bin ${PROJECT_SOURCE_DIR}/models/gptoss-tiny-mxfp4.gguf
    ${PROJECT_SOURCE_DIR}/models/gptoss-tiny-mxfp4.golden.json --losses 2)
  set_tests_properties(e2e-gpu-pair PROPERTIES
    TIMEOUT 280 SKIP_RETURN_CODE 77 LABELS "e2e;gpu" RESOURCE_LOCK gpu)
endif()
