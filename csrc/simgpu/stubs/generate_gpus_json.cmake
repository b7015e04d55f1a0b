# Writes the rows of gpus.def as a JSON list of objects, so that the launcher can read the card table without loading
# the simulated runtime.
#
#   cmake -DTABLE=gpus.def -DOUTPUT=gpus.json -P generate_gpus_json.cmake
cmake_minimum_required(VERSION 3.20)
set(columns memory_bytes major minor sm_count clock_khz mem_clock_khz bus_bits l2_bytes smem_per_block smem_optin
    smem_per_sm regs_per_sm max_threads_per_sm max_blocks_per_sm)
file(STRINGS "${TABLE}" rows REGEX "^GPU\\(")
set(objects "")
foreach(row IN LISTS rows)
  if(NOT row MATCHES "^GPU\\(\"([a-z0-9-]+)\", *\"([^\"]+)\", *([0-9, ]+)\\)$")
    message(FATAL_ERROR "gpus.def: this row does not have the form of the others: ${row}")
  endif()
  set(object "  {\"key\": \"${CMAKE_MATCH_1}\", \"name\": \"${CMAKE_MATCH_2}\"")
  string(REGEX MATCHALL "[0-9]+" values "${CMAKE_MATCH_3}")
  foreach(column value IN ZIP_LISTS columns values)
    if(column STREQUAL "" OR value STREQUAL "")
      message(FATAL_ERROR "gpus.def: this row does not have as many figures as the others: ${row}")
    endif()
    string(APPEND object ", \"${column}\": ${value}")
  endforeach()
  list(APPEND objects "${object}}")
endforeach()
list(JOIN objects ",\n" text)
file(WRITE "${OUTPUT}" "[\n${text}\n]\n")
