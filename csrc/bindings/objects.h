// Attributes of many Python objects, read and set without the interpreter's loop.
//
// A model has hundreds of tensors and modules, and a step looks at each of them several
// times. All functions here are plain loops over lists, and keep no object alive: what
// they compare with is a list of the caller's.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <utility>
#include <vector>

namespace codedgrad {

namespace py = pybind11;

// One attribute of objects of few types. The way to it is looked up once for each type,
// and again where Python says that the type, or one that it inherits from, has changed:
// a getter in C is called directly, an instance's own dictionary is asked where no
// class has the attribute, and Python's getattr is the way for all the rest.
class Attribute {
 public:
  // With `call` the attribute is a method, and its value is what it returns.
  Attribute(py::str name, bool call) : name_(std::move(name)), call_(call) {}

  // The attribute of this name for all callers, which stays for as long as the process.
  static Attribute& named(const py::str& name, bool call);

  // Throws error_already_set, as the functions below do.
  py::object get(py::handle object);
  void set(py::handle object, py::handle value);

 private:
  struct Way {
    PyTypeObject* type;    // only compared; another one there has another number
    unsigned version = 0;  // Python's number of what the type is; 0: it has none
    PyGetSetDef* accessors = nullptr;
    PyMethodDef* method = nullptr;
    bool own = false;  // no class has it, so it lies in the object's own dictionary
  };
  Way way_of(PyTypeObject* type);  // a copy: getters may come here, too
  Way found(PyTypeObject* type) const;
  py::object from_own_dictionary(py::handle object) const;

  py::str name_;
  bool call_;
  std::vector<Way> ways_;
  std::size_t last_ = 0;
};

// Whether the dictionaries have these very values, one after the other.
bool values_are(const py::list& dictionaries, const py::list& values);
// Whether each dictionary has the very value at its key.
bool items_are(const py::list& dictionaries, const py::list& keys,
               const py::list& values);
// Whether the attribute of each object, or what it returns with `call`, is equal.
bool reads(const py::list& objects, const py::str& name, bool call,
           const py::list& values);

void define_objects(py::module_& m);

}  // namespace codedgrad
