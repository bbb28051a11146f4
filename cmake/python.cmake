# Finds Python and pybind11. The first python3 of PATH may be one of the user's without NumPy, beside
# the system's, which has it; -DPython_EXECUTABLE=... chooses another.
if(NOT DEFINED Python_EXECUTABLE)
  find_program(python_in_path python3 NO_CACHE)
  foreach(candidate IN ITEMS ${python_in_path} /usr/bin/python3)
    execute_process(COMMAND ${candidate} -c "import numpy" RESULT_VARIABLE without_numpy
                    OUTPUT_QUIET ERROR_QUIET)
    if(NOT without_numpy)
      set(Python_EXECUTABLE ${candidate} CACHE FILEPATH "Python that the package is built for")
      break()
    endif()
  endforeach()
endif()
if(Python_EXECUTABLE)
  find_package(Python 3.9 QUIET COMPONENTS Interpreter Development.Module)
endif()
if(Python_FOUND)
  find_package(pybind11 2.10 QUIET)
endif()
