gptoss_test(golden gptoss_kernels PkgConfig::jansson)

# The plain C oracle takes a minute or two.
add_test(NAME golden_reference COMMAND test_golden reference WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
set_tests_properties(golden_reference PROPERTIES TIMEOUT 1200 LABELS long)
