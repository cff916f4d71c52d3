# `cmake --install build/<preset> --strip --prefix DIR` makes a relocatable bundle: bin/ with the
# executables, lib/ with every shared library they need except the C library's own. It runs from
# any folder of a machine whose C library is as new as this one's: how a worker gets to a second box.

# DT_RPATH, not DT_RUNPATH: it also applies to what the bundled libraries need.
foreach(target packtrain packtrain-worker)
  set_target_properties(${target} PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
  target_link_options(${target} PRIVATE -Wl,--disable-new-dtags)
endforeach()

install(TARGETS packtrain packtrain-worker RUNTIME_DEPENDENCY_SET packtrain_libraries
        RUNTIME DESTINATION bin COMPONENT runtime)
install(RUNTIME_DEPENDENCY_SET packtrain_libraries
        PRE_EXCLUDE_REGEXES "^ld-linux" "^lib(c|m|dl|rt|pthread|resolv)\\.so"
        LIBRARY DESTINATION lib COMPONENT runtime)
if(TARGET packtrain_cuda)
  # CUDA and NCCL themselves come from the machine.
  install(TARGETS packtrain_cuda LIBRARY DESTINATION lib COMPONENT runtime)
endif()
