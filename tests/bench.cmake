gptoss_test(bench gptoss_bench)
gptoss_test(bench_steps gptoss_bench)
gptoss_test(simulate gptoss_bench gptoss_coordinator m)

# A short measurement with the real processes: its output is read, its tokens are compared.
if(TARGET gptoss-bench AND TARGET gptoss-worker AND TARGET gptoss-coordinator)
  find_program(GPTOSS_PYTHON NAMES python3 PATHS /usr/bin NO_DEFAULT_PATH)
  if(GPTOSS_PYTHON)
    add_test(NAME e2e-bench
      COMMAND ${GPTOSS_PYTHON} ${PROJECT_SOURCE_DIR}/tests/e2e/bench_pipeline.py
        $<TARGET_FILE:gptoss-bench> ${PROJECT_SOURCE_DIR}/models/gptoss-tiny-mxfp4.gguf)
    add_test(NAME e2e-bench-load
      COMMAND ${GPTOSS_PYTHON} ${PROJECT_SOURCE_DIR}/tests/e2e/bench_load.py
        $<TARGET_FILE:gptoss-bench> ${PROJECT_SOURCE_DIR}/models/gptoss-tiny-mxfp4.gguf
        ${PROJECT_SOURCE_DIR}/scripts/scaling)
    # int8 activations foretell a text as well as float ones.
    add_test(NAME e2e-perplexity
      COMMAND ${GPTOSS_PYTHON} ${PROJECT_SOURCE_DIR}/tests/e2e/perplexity.py
        $<TARGET_FILE:gptoss-bench> ${PROJECT_SOURCE_DIR}/models/gptoss-tiny-mxfp4.gguf
        ${PROJECT_SOURCE_DIR}/tests/data/ruth-jonah-esther.txt)
    add_test(NAME e2e-compare
      COMMAND ${GPTOSS_PYTHON} ${PROJECT_SOURCE_DIR}/tests/e2e/compare.py
        ${PROJECT_SOURCE_DIR}/scripts/compare-cpu $<TARGET_FILE:gptoss-bench>
        ${PROJECT_SOURCE_DIR}/models/gptoss-tiny-mxfp4.gguf)
    set_tests_properties(e2e-bench e2e-bench-load e2e-perplexity e2e-compare PROPERTIES
      TIMEOUT 280 LABELS e2e RUN_SERIAL TRUE)
  endif()
endif()
