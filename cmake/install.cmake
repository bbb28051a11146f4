# Headers, the CMake package mla (mla::mla, mla::compiled, mla::io, mla::model, mla::text, mla::c),
# and for pkg-config mla.pc, mla-compiled.pc (in its place, with the kernels of mla::compiled),
# mla-text.pc (beside either, for mla/io, mla/model and mla/text) and mla-c.pc (the library in C).
#
# Components: `headers` is what programs are compiled with, `library` is libmla.so (bindings/c), and
# `programs` (examples, server).

include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/mla)

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/mla DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        COMPONENT headers FILES_MATCHING PATTERN "*.hpp" PATTERN "*.inl")

# mla::io and what needs it are not exported but made in mlaConfig.cmake: an exported target whose
# nlohmann/json is not there would make the whole package unusable.
install(TARGETS mla mla_compiled EXPORT mlaTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        COMPONENT headers)
install(EXPORT mlaTargets NAMESPACE mla:: DESTINATION ${package_dir} COMPONENT headers)

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/mlaConfig.cmake.in
                              ${PROJECT_BINARY_DIR}/mlaConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/mlaConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/mlaConfig.cmake ${PROJECT_BINARY_DIR}/mlaConfigVersion.cmake
        DESTINATION ${package_dir} COMPONENT headers)

# Paths in .pc files are relative to the file, so that an installed tree can be moved; unless
# somebody wants the headers or the library at an absolute path.
if(IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}" OR IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(pc_prefix ${CMAKE_INSTALL_PREFIX})
  set(pc_includedir ${CMAKE_INSTALL_FULL_INCLUDEDIR})
else()
  cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX
             BASE_DIRECTORY ${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/pkgconfig
             OUTPUT_VARIABLE up)
  set(pc_prefix "\${pcfiledir}/${up}")
  set(pc_includedir "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
set(packages mla mla-compiled)
if(TARGET mla::text)
  list(APPEND packages mla-text)
  if(MLA_BUILD_C)
    list(APPEND packages mla-c)
  endif()
endif()
foreach(package IN LISTS packages)
  configure_file(${CMAKE_CURRENT_LIST_DIR}/${package}.pc.in ${PROJECT_BINARY_DIR}/${package}.pc
                 @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/${package}.pc
          DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT headers)
endforeach()
