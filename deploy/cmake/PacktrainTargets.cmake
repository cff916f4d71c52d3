# The three helper functions of the build, and the search for CUDA.

add_library(packtrain_warnings INTERFACE)
target_compile_options(packtrain_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wconversion -Werror>)

# packtrain_library(NAME SOURCES ... [DEPS ...]): a static library of our own code,
# known to others as packtrain::NAME. Without sources it is an interface library.
function(packtrain_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  if(ARG_SOURCES)
    add_library(${name} STATIC ${ARG_SOURCES})
    target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR})
    target_link_libraries(${name} PUBLIC ${ARG_DEPS} PRIVATE packtrain_warnings)
  else()
    add_library(${name} INTERFACE)
    target_include_directories(${name} INTERFACE ${CMAKE_SOURCE_DIR})
    target_link_libraries(${name} INTERFACE ${ARG_DEPS})
  endif()
  add_library(packtrain::${name} ALIAS ${name})
endfunction()

# packtrain_kernel(NAME SOURCES ... [DEPS ...]): as above; the suffix of a file selects the
# instruction set it is compiled for, so no file needs #if per ISA. -O2 at least: at -O0 an
# AVX-512 file can emit weak symbols that the linker keeps for the whole program.
function(packtrain_kernel name)
  packtrain_library(${name} ${ARGN})
  get_target_property(sources ${name} SOURCES)
  foreach(source ${sources})
    if(source MATCHES "_avx512\\.cc$")
      set(flags -O3 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi
                -mavx512vnni -mavx512bitalg -mavx512vpopcntdq -mgfni -mprefer-vector-width=512)
    elseif(source MATCHES "_avx2\\.cc$")
      set(flags -O3 -mavx2 -mfma -mf16c -mbmi -mbmi2)
    else()
      set(flags -O2)
    endif()
    # Contraction would change results with the compiler's mood; kernels ask for FMA by name.
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${flags};-ffp-contract=off")
  endforeach()
endfunction()

# Seconds until a test counts as hanging. Sanitizers make the longest ones over ten times as long.
set(PACKTRAIN_TEST_TIMEOUT 300)
if(CMAKE_CXX_FLAGS MATCHES "fsanitize")
  set(PACKTRAIN_TEST_TIMEOUT 3600)
endif()

# packtrain_test(NAME SOURCES ... [DEPS ...] [LABEL label] [RUN_ALONE]): a GoogleTest program; its
# label is the first folder below tests/ unless given. RUN_ALONE: not beside other tests, because it
# uses all cores or measures them.
function(packtrain_test name)
  cmake_parse_arguments(ARG "RUN_ALONE" "LABEL" "SOURCES;DEPS" ${ARGN})
  if(NOT ARG_LABEL)
    file(RELATIVE_PATH below ${CMAKE_SOURCE_DIR}/tests ${CMAKE_CURRENT_SOURCE_DIR})
    string(REGEX MATCH "^[^/]+" ARG_LABEL ${below})
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest GTest::gmock GTest::gtest_main
                                        packtrain_warnings)
  target_compile_definitions(${name} PRIVATE PACKTRAIN_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
                                             PACKTRAIN_BINARY_DIR="${CMAKE_BINARY_DIR}")
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${PACKTRAIN_TEST_TIMEOUT}
                                          RUN_SERIAL ${ARG_RUN_ALONE})
endfunction()

# packtrain_hands_over_in_grpc(TEST ...): labels tests whose threads or processes hand data over
# through gRPC. ThreadSanitizer sees no hand-over inside the distribution's gRPC and Abseil, which are
# built without it, and would report every buffer that passes through them: the tsan preset leaves
# these tests out.
function(packtrain_hands_over_in_grpc)
  foreach(name ${ARGN})
    set_property(TEST ${name} APPEND PROPERTY LABELS grpc_handover)
  endforeach()
endfunction()

# Sets PACKTRAIN_HAVE_CUDA. nvcc is optional; without it everything but the device library builds.
function(packtrain_find_cuda)
  set(PACKTRAIN_HAVE_CUDA OFF PARENT_SCOPE)
  if(PACKTRAIN_CUDA STREQUAL "OFF")
    return()
  endif()
  find_program(PACKTRAIN_NVCC nvcc HINTS ENV CUDA_PATH PATHS /usr/local/cuda/bin)
  if(PACKTRAIN_NVCC)
    set(PACKTRAIN_HAVE_CUDA ON PARENT_SCOPE)
  elseif(PACKTRAIN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PACKTRAIN_CUDA=ON but nvcc was not found")
  endif()
endfunction()
