# An overlay port of this checkout: vcpkg install mla --overlay-ports=<checkout>/cmake/vcpkg
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

vcpkg_cmake_configure(
    SOURCE_PATH "${SOURCE_PATH}"
    OPTIONS
        -DMLA_BUILD_TESTS=OFF
        -DMLA_BUILD_BENCHMARKS=OFF
        -DMLA_BUILD_EXAMPLES=OFF
        -DMLA_BUILD_C=OFF
        -DMLA_BUILD_SERVER=OFF
        -DMLA_BUILD_PYTHON=OFF
        -DMLA_INSTALL=ON
        -DMLA_WARNINGS_AS_ERRORS=OFF
)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH lib/cmake/mla)
vcpkg_fixup_pkgconfig()
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug/include")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
