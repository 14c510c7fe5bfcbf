# A CMake "toolchain" for the build of NNG by crate nng-sys, which has no other way to pass this on: NNG shall be built with
# TLS but without an engine of its own, as we bring rustls (src/tls/engine). Whoever runs cargo names this file in
# CMAKE_TOOLCHAIN_FILE: .cargo/config.toml for developers, src/Makevars.in for R. Cargo does not see when this changes: then, cargo clean -p nng-sys.
set(NNG_TLS_ENGINE none CACHE STRING "" FORCE)

# Its buffers for TLS, 16 KiB each, would make every 16 KiB a change of threads. (The second name is what NNG's own source
# looks for, by mistake, before it defines the third.)
add_definitions(-DNNG_TLS_MAX_SEND_SIZE=131072 -DNNG_TLX_MAX_RECV_SIZE=131072 -DNNG_TLS_MAX_RECV_SIZE=131072)

# gcc 14 and later take a line of NNG's win_tcpconn.c for an error.
if(CMAKE_HOST_WIN32 OR CMAKE_SYSTEM_NAME STREQUAL "Windows")
  add_compile_options(-Wno-incompatible-pointer-types)
endif()
