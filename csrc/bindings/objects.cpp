#include "bindings/objects.h"

#include <memory>
#include <vector>

namespace codedgrad {
namespace {

constexpr std::size_t kMostWays = 64;

py::object owned(PyObject* value) {
  if (value == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

// The object at a place of a list; getters may run code that changes the list.
py::object item(const py::list& list, std::size_t index) {
  if (index >= list.size()) throw py::index_error("a list became shorter");
  return py::reinterpret_borrow<py::object>(PyList_GET_ITEM(list.ptr(), index));
}

bool equal(py::handle a, py::handle b) {
  const int answer = PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ);
  if (answer < 0) throw py::error_already_set();
  return answer != 0;
}

// Calls visit(value) for each value of each dictionary; visit returns whether to go on.
// A dictionary of another kind (TorchScript's) has only the method `values`.
template <typename Visit>
bool each_value(const py::list& dictionaries, const Visit& visit) {
  for (std::size_t i = 0; i < dictionaries.size(); ++i) {
    const py::object one = item(dictionaries, i);
    if (PyDict_Check(one.ptr())) {
      Py_ssize_t place = 0;
      PyObject* value = nullptr;
      while (PyDict_Next(one.ptr(), &place, nullptr, &value)) {
        if (!visit(py::handle(value))) return false;
      }
      continue;
    }
    for (py::handle value : py::iter(one.attr("values")())) {
      if (!visit(value)) return false;
    }
  }
  return true;
}

// Whether attributes are looked up in the usual way, at least at first.
bool asks_usually(PyTypeObject* type) {
  const auto way_of = [](PyTypeObject* one) {
    return owned(
        PyObject_GetAttrString(reinterpret_cast<PyObject*>(one), "__getattribute__"));
  };
  return way_of(type).is(way_of(&PyBaseObject_Type));
}

// Python's number of all that a type and those above it are, which changes with them
// and is never given twice; 0 where it has none at the moment, and in Python 3.10,
// whose sys._clear_type_cache() begins the numbers anew.
unsigned version_of(PyTypeObject* type) {
#if PY_VERSION_HEX < 0x030B0000
  (void)type;
  return 0;
#elif PY_VERSION_HEX < 0x030D0000
  if (!PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG)) return 0;
#endif
  return type->tp_version_tag;
}

py::list values_of(const py::list& dictionaries) {
  py::list found;
  each_value(dictionaries, [&](py::handle value) {
    found.append(value);
    return true;
  });
  return found;
}

py::list read(const py::list& objects, const py::str& name, bool call) {
  Attribute& attribute = Attribute::named(name, call);
  py::list found(objects.size());
  for (std::size_t i = 0; i < objects.size(); ++i) {
    found[i] = attribute.get(item(objects, i));
  }
  return found;
}

bool all_none(const py::list& objects, const py::str& name) {
  Attribute& attribute = Attribute::named(name, false);
  for (std::size_t i = 0; i < objects.size(); ++i) {
    if (!attribute.get(item(objects, i)).is_none()) return false;
  }
  return true;
}

py::list filled(const py::list& objects, const py::str& name) {
  Attribute& attribute = Attribute::named(name, false);
  py::list found(objects.size());
  for (std::size_t i = 0; i < objects.size(); ++i) {
    found[i] = py::bool_(!attribute.get(item(objects, i)).is_none());
  }
  return found;
}

void assign(const py::list& objects, const py::str& name, const py::list& values) {
  if (objects.size() != values.size())
    throw py::value_error("give as many values as objects");
  Attribute& attribute = Attribute::named(name, false);
  for (std::size_t i = 0; i < objects.size(); ++i) {
    attribute.set(item(objects, i), item(values, i));
  }
}

void assign_all(const py::list& objects, const py::str& name, const py::object& value) {
  Attribute& attribute = Attribute::named(name, false);
  for (std::size_t i = 0; i < objects.size(); ++i) {
    attribute.set(item(objects, i), value);
  }
}

}  // namespace

bool values_are(const py::list& dictionaries, const py::list& values) {
  std::size_t count = 0;
  const bool same = each_value(dictionaries, [&](py::handle value) {
    return count < values.size() &&
           PyList_GET_ITEM(values.ptr(), count++) == value.ptr();
  });
  return same && count == values.size();
}

bool items_are(const py::list& dictionaries, const py::list& keys,
               const py::list& values) {
  if (dictionaries.size() != keys.size() || keys.size() != values.size()) return false;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const py::object one = item(dictionaries, i), key = item(keys, i);
    PyObject* found = PyDict_GetItemWithError(one.ptr(), key.ptr());  // borrowed
    if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
    if (i >= values.size() || found != PyList_GET_ITEM(values.ptr(), i)) return false;
  }
  return true;
}

bool reads(const py::list& objects, const py::str& name, bool call,
           const py::list& values) {
  if (objects.size() != values.size()) return false;
  Attribute& attribute = Attribute::named(name, call);
  for (std::size_t i = 0; i < objects.size(); ++i) {
    if (!equal(attribute.get(item(objects, i)), item(values, i))) return false;
  }
  return true;
}

Attribute& Attribute::named(const py::str& name, bool call) {
  static auto* known = new std::vector<std::unique_ptr<Attribute>>;  // never ends
  for (const auto& one : *known) {
    if (one->call_ == call && one->name_.is(name)) return *one;
  }
  for (const auto& one : *known) {
    if (one->call_ == call && equal(one->name_, name)) return *one;
  }
  known->push_back(std::make_unique<Attribute>(name, call));
  return *known->back();
}

Attribute::Way Attribute::way_of(PyTypeObject* type) {
  const unsigned version = version_of(type);
  const auto fits = [&](const Way& way) {
    return way.type == type && way.version == version && version != 0;
  };
  if (last_ < ways_.size() && fits(ways_[last_])) return ways_[last_];
  for (std::size_t i = 0; i < ways_.size(); ++i) {
    if (fits(ways_[i])) return ways_[last_ = i];
  }
  Way way = found(type);
  way.version = version_of(type);  // looking it up gives it a number
  if (version != 0 && way.version != version) way.version = 0;  // it changed meanwhile
  if (ways_.size() >= kMostWays) ways_.clear();                 // types come and go
  ways_.push_back(way);
  last_ = ways_.size() - 1;
  return way;
}

Attribute::Way Attribute::found(PyTypeObject* type) const {
  Way way{type};
  PyObject* got = PyObject_GetAttr(reinterpret_cast<PyObject*>(type), name_.ptr());
  if (got == nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
    PyErr_Clear();
    way.own = !call_ && asks_usually(type);
    return way;
  }
  const py::object held = py::reinterpret_steal<py::object>(got);
  // Who has written a __getattribute__ or __getattr__ wants it to be asked.
  if (type->tp_getattro != PyObject_GenericGetAttr) return way;
  if (!call_ && Py_TYPE(got) == &PyGetSetDescr_Type &&
      PyType_IsSubtype(type, PyDescr_TYPE(got))) {
    way.accessors = reinterpret_cast<PyGetSetDescrObject*>(got)->d_getset;
  }
  if (call_ && Py_TYPE(got) == &PyMethodDescr_Type &&
      PyType_IsSubtype(type, PyDescr_TYPE(got))) {
    PyMethodDef* method = reinterpret_cast<PyMethodDescrObject*>(got)->d_method;
    if (method->ml_flags == METH_NOARGS) way.method = method;
  }
  return way;
}

py::object Attribute::from_own_dictionary(py::handle object) const {
  PyObject* own = PyObject_GenericGetDict(object.ptr(), nullptr);
  if (own == nullptr) {
    PyErr_Clear();  // it has none
    return py::object();
  }
  const py::object held = py::reinterpret_steal<py::object>(own);
  PyObject* value = PyDict_GetItemWithError(own, name_.ptr());  // borrowed
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return py::reinterpret_borrow<py::object>(value);
}

py::object Attribute::get(py::handle object) {
  const Way way = way_of(Py_TYPE(object.ptr()));
  if (way.accessors != nullptr && way.accessors->get != nullptr) {
    return owned(way.accessors->get(object.ptr(), way.accessors->closure));
  }
  if (way.method != nullptr) return owned(way.method->ml_meth(object.ptr(), nullptr));
  if (way.own) {
    py::object found = from_own_dictionary(object);
    if (found) return found;
  }
  if (call_) return owned(PyObject_CallMethodNoArgs(object.ptr(), name_.ptr()));
  return owned(PyObject_GetAttr(object.ptr(), name_.ptr()));
}

void Attribute::set(py::handle object, py::handle value) {
  const Way way = way_of(Py_TYPE(object.ptr()));
  const bool direct = way.accessors != nullptr && way.accessors->set != nullptr;
  const int failed =
      direct ? way.accessors->set(object.ptr(), value.ptr(), way.accessors->closure)
             : PyObject_SetAttr(object.ptr(), name_.ptr(), value.ptr());
  if (failed != 0) throw py::error_already_set();
}

void define_objects(py::module_& m) {
  using namespace pybind11::literals;
  m.def("values_of", &values_of, "dictionaries"_a);
  m.def("values_are", &values_are, "dictionaries"_a, "values"_a);
  m.def("items_are", &items_are, "dictionaries"_a, "keys"_a, "values"_a);
  m.def("read", &read, "objects"_a, "name"_a, "call"_a);
  m.def("reads", &reads, "objects"_a, "name"_a, "call"_a, "values"_a);
  m.def("all_none", &all_none, "objects"_a, "name"_a);
  m.def("filled", &filled, "objects"_a, "name"_a);
  m.def("assign", &assign, "objects"_a, "name"_a, "values"_a);
  m.def("assign_all", &assign_all, "objects"_a, "name"_a, "value"_a);
}

}  // namespace codedgrad
