gptoss_test(bench gptoss_bench)
gptoss_test(bench_steps gptoss_bench)

# A short measurement with the real processes; its JSON is read, its tokens are compared.
if(TARGET gptoss-bench AND TARGET gptoss-worker AND TARGET gptoss-coordinator)
  find_program(PYTHON3 NAMES python3)
  if(PYTHON3)
    add_test(NAME bench-pipeline
      COMMAND ${PYTHON3} ${PROJECT_SOURCE_DIR}/tests/e2e/bench_pipeline.py
        $<TARGET_FILE:gptoss-bench> ${PROJECT_SOURCE_DIR}/models/gptoss-tiny-mxfp4.gguf)
    set_tests_properties(bench-pipeline PROPERTIES TIMEOUT 120 LABELS e2e PROCESSORS 2)
  endif()
endif()
