# The stubs of cuBLAS, cuDNN and the rest, for simgpu.cmake:
#   SIMGPU_STUB_SOURCES   sources to compile into libsimgpu.so
# and the card table gpus.def as JSON, installed beside the library for the launcher to read.
set(simgpu_stub_dir "${CMAKE_CURRENT_LIST_DIR}")
set(simgpu_library_stubs "${CMAKE_CURRENT_BINARY_DIR}/simgpu/library_stubs.cpp")
add_custom_command(
  OUTPUT "${simgpu_library_stubs}"
  COMMAND "${CMAKE_COMMAND}" "-DLIST=${simgpu_stub_dir}/library_symbols.txt" "-DOUTPUT=${simgpu_library_stubs}"
          -P "${simgpu_stub_dir}/generate_stubs.cmake"
  DEPENDS "${simgpu_stub_dir}/library_symbols.txt" "${simgpu_stub_dir}/generate_stubs.cmake"
  COMMENT "Writing the library stubs"
  VERBATIM)
file(GLOB simgpu_stub_files CONFIGURE_DEPENDS "${simgpu_stub_dir}/*.cpp")
set(SIMGPU_STUB_SOURCES ${simgpu_stub_files} "${simgpu_library_stubs}")

set(simgpu_card_table "${CMAKE_CURRENT_BINARY_DIR}/simgpu/gpus.json")
set(simgpu_card_inputs "${simgpu_stub_dir}/../gpus.def" "${simgpu_stub_dir}/generate_gpus_json.cmake")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${simgpu_card_inputs})
execute_process(
  COMMAND "${CMAKE_COMMAND}" "-DTABLE=${simgpu_stub_dir}/../gpus.def" "-DOUTPUT=${simgpu_card_table}"
          -P "${simgpu_stub_dir}/generate_gpus_json.cmake"
  COMMAND_ERROR_IS_FATAL ANY)
install(FILES "${simgpu_card_table}" DESTINATION simgpu)
