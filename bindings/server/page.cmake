# Writes page.hpp: page.html as a string in C++.
#   cmake -DPAGE=page.html -DHEADER=page.hpp -P page.cmake
file(READ ${PAGE} page)
string(LENGTH "${page}" length)
if(length GREATER 16000)  # of one literal in C++
  message(FATAL_ERROR "${PAGE} is too long for one string")
endif()
file(WRITE ${HEADER} "// Made of page.html.
#ifndef MLA_SERVER_PAGE_HPP_
#define MLA_SERVER_PAGE_HPP_

namespace mla::server {
inline constexpr char kPage[] = R\"html(${page})html\";
}  // namespace mla::server

#endif  // MLA_SERVER_PAGE_HPP_
")
