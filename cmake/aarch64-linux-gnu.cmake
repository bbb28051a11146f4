# Toolchain: 64-bit ARM with Debian's cross compiler, programs run by qemu-user. Statically linked:
# the emulator starts them faster, and needs no libraries of the other architecture.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -cpu max)  # with products of bfloat16
