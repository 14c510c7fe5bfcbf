# A CMake "toolchain" for the build of NNG by crate nng-sys, which has no other way to pass this on: NNG shall be built with
# TLS but without an engine of its own, as we bring rustls (src/tls/engine). Whoever runs cargo names this file in
# CMAKE_TOOLCHAIN_FILE: .cargo/config.toml for developers, src/Makevars.in for R. Cargo does not see when this changes: then, cargo clean -p nng-sys.
set(NNG_TLS_ENGINE none CACHE STRING "" FORCE)

# Only streams are used (src/transport/nng), and for comparison sockets over TCP (examples/network.rs). NNG would build what
# WebSocket's are made of for its own transport only.
foreach(transport INPROC IPC TLS WS WSS)
  set(NNG_TRANSPORT_${transport} OFF CACHE BOOL "" FORCE)
endforeach()
foreach(part WEBSOCKET HTTP BASE64 SHA1)
  set(NNG_SUPP_${part} ON CACHE BOOL "" FORCE)
endforeach()

# Its buffers for TLS, 16 KiB each, would make every 16 KiB a change of threads. (The second name is what NNG's own source
# looks for, by mistake, before it defines the third.)
add_definitions(-DNNG_TLS_MAX_SEND_SIZE=131072 -DNNG_TLX_MAX_RECV_SIZE=131072 -DNNG_TLS_MAX_RECV_SIZE=131072)

# gcc 14 and later take a line of NNG's win_tcpconn.c for an error.
if(CMAKE_HOST_WIN32 OR CMAKE_SYSTEM_NAME STREQUAL "Windows")
  add_compile_options(-Wno-incompatible-pointer-types)
endif()

# No tables for unwinding: no panic passes through, as Rust ends the process where one would enter C.
if(NOT CMAKE_HOST_WIN32 AND NOT CMAKE_SYSTEM_NAME STREQUAL "Windows")
  add_compile_options(-fno-asynchronous-unwind-tables -fno-unwind-tables)
endif()
