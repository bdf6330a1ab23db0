gptoss_test(gguf gptoss_gguf m)
gptoss_test(gguf_hostile gptoss_gguf)
gptoss_test(gguf_model gptoss_gguf)
gptoss_test(gguf_split gptoss_gguf)
gptoss_test(gguf_weights gptoss_gguf)
gptoss_test(gguf_memory gptoss_gguf)
target_link_options(test_gguf_memory PRIVATE
  -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=strdup)
gptoss_test(gguf_tools gptoss_tools PkgConfig::jansson m)
gptoss_test(gguf_commands gptoss_tools PkgConfig::jansson m)
if(TARGET gptoss_kernels)
  gptoss_test(formats gptoss_kernels gptoss_tools PkgConfig::jansson)
  set_tests_properties(formats PROPERTIES TIMEOUT 240)
endif()

# A bounded run over the corpus; longer: tests/fuzz/run SOURCE BINARY -max_total_time=600
add_test(NAME gguf_fuzz
  COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/run ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
set_tests_properties(gguf_fuzz PROPERTIES TIMEOUT 240 SKIP_RETURN_CODE 77 LABELS unit)
