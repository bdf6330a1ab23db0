add_test(NAME doors COMMAND ${PROJECT_SOURCE_DIR}/scripts/check-doors ${PROJECT_SOURCE_DIR})

# Each header alone, with the include paths of the libraries that the doors need.
set(paths ${MPI_C_INCLUDE_DIRS} ${zmq_INCLUDE_DIRS} ${protobuf_c_INCLUDE_DIRS}
  ${jansson_INCLUDE_DIRS} ${cmocka_INCLUDE_DIRS} ${PROJECT_BINARY_DIR}/proto/generated)
list(TRANSFORM paths PREPEND -isystem)
add_test(NAME headers
  COMMAND ${PROJECT_SOURCE_DIR}/scripts/check-headers ${PROJECT_SOURCE_DIR} ${CMAKE_C_COMPILER} ${paths})

add_test(NAME format COMMAND ${PROJECT_SOURCE_DIR}/scripts/check-format ${PROJECT_SOURCE_DIR})
set_tests_properties(doors headers format PROPERTIES TIMEOUT 60 LABELS style SKIP_RETURN_CODE 77)

if(TARGET gptoss-coordinator)
  add_test(NAME coordinator-ldd
    COMMAND ${PROJECT_SOURCE_DIR}/scripts/check-links $<TARGET_FILE:gptoss-coordinator>)
  set_tests_properties(coordinator-ldd PROPERTIES TIMEOUT 60 LABELS style)
endif()
