gptoss_test(gguf gptoss_gguf m)
gptoss_test(gguf_hostile gptoss_gguf)
gptoss_test(gguf_model gptoss_gguf)
gptoss_test(gguf_tools gptoss_tools PkgConfig::jansson m)
