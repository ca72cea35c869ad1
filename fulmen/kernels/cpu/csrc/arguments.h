// Keyword arguments of a call, read into the fields of a kernel's struct.
//
// A binding names each field once, READ_FIELDS(read, args, rows, width, ...), and Python passes it
// under that name. A missing or unknown argument is a TypeError.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <stdint.h>

#include <string>
#include <type_traits>

namespace fulmen {

using Address = uint64_t;  // Tensor.data_ptr(); 0 is a null pointer

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

class Arguments {
 public:
  explicit Arguments(const nanobind::kwargs& given) : given_(given) {}

  // The Python object given under an interned name.
  nanobind::handle take(PyObject* name) {
    PyObject* value = PyDict_GetItemWithError(given_.ptr(), name);
    if (value == nullptr) fail(name, "is missing");
    ++num_taken_;
    return value;
  }

  // Fills a field: a pointer from an address, an enum from its number, others by conversion.
  template <class T>
  void read(PyObject* name, T& field) {
    const nanobind::handle value = take(name);
    if constexpr (std::is_pointer_v<T>)
      field = at<std::remove_pointer_t<T>>(nanobind::cast<Address>(value));
    else if constexpr (std::is_enum_v<T>)
      field = T(nanobind::cast<int>(value));
    else
      field = nanobind::cast<T>(value);
  }

  // Checks that every argument was read.
  void finish() const {
    if (num_taken_ == PyDict_Size(given_.ptr())) return;
    throw nanobind::type_error((std::to_string(PyDict_Size(given_.ptr())) +
                                " arguments are given, " + std::to_string(num_taken_) +
                                " are known")
                                   .c_str());
  }

 private:
  [[noreturn]] static void fail(PyObject* name, const char* problem) {
    throw nanobind::type_error(
        ("argument " + std::string(PyUnicode_AsUTF8AndSize(name, nullptr)) + " " + problem)
            .c_str());
  }

  nanobind::kwargs given_;
  Py_ssize_t num_taken_ = 0;
};

}  // namespace fulmen

// The interned string of a name, made once.
#define FULMEN_NAME_OF(name)                                            \
  ([]() -> PyObject* {                                                  \
    static PyObject* const interned = PyUnicode_InternFromString(name); \
    return interned;                                                    \
  }())

#define FULMEN_READ_FIELD(read_from, args, name) \
  (read_from).read(FULMEN_NAME_OF(#name), (args).name);

// READ_FIELDS(a, b, x, y) is FULMEN_READ_FIELD(a, b, x) FULMEN_READ_FIELD(a, b, y), for up to 27.
#define FULMEN_PARENS ()
#define FULMEN_EXPAND(...) FULMEN_EXPAND2(FULMEN_EXPAND2(FULMEN_EXPAND2(__VA_ARGS__)))
#define FULMEN_EXPAND2(...) FULMEN_EXPAND1(FULMEN_EXPAND1(FULMEN_EXPAND1(__VA_ARGS__)))
#define FULMEN_EXPAND1(...) FULMEN_EXPAND0(FULMEN_EXPAND0(FULMEN_EXPAND0(__VA_ARGS__)))
#define FULMEN_EXPAND0(...) __VA_ARGS__
#define FULMEN_NEXT_FIELD(read_from, args, name, ...) \
  FULMEN_READ_FIELD(read_from, args, name)            \
  __VA_OPT__(FULMEN_AGAIN FULMEN_PARENS(read_from, args, __VA_ARGS__))
#define FULMEN_AGAIN() FULMEN_NEXT_FIELD
#define READ_FIELDS(read_from, args, ...) \
  FULMEN_EXPAND(FULMEN_NEXT_FIELD(read_from, args, __VA_ARGS__))
