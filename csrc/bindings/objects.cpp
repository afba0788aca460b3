#include "bindings/objects.h"

namespace codedgrad {
namespace {

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

py::list values_of(const py::list& dictionaries) {
  py::list found;
  each_value(dictionaries, [&](py::handle value) {
    found.append(value);
    return true;
  });
  return found;
}

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

py::list read(const py::list& objects, const py::str& name, bool call) {
  Attribute attribute(name, call);
  py::list found(objects.size());
  for (std::size_t i = 0; i < objects.size(); ++i) {
    found[i] = attribute.get(item(objects, i));
  }
  return found;
}

bool reads(const py::list& objects, const py::str& name, bool call,
           const py::list& values) {
  if (objects.size() != values.size()) return false;
  Attribute attribute(name, call);
  for (std::size_t i = 0; i < objects.size(); ++i) {
    if (!equal(attribute.get(item(objects, i)), item(values, i))) return false;
  }
  return true;
}

bool all_none(const py::list& objects, const py::str& name) {
  Attribute attribute(name, false);
  for (std::size_t i = 0; i < objects.size(); ++i) {
    if (!attribute.get(item(objects, i)).is_none()) return false;
  }
  return true;
}

py::list filled(const py::list& objects, const py::str& name) {
  Attribute attribute(name, false);
  py::list found(objects.size());
  for (std::size_t i = 0; i < objects.size(); ++i) {
    found[i] = py::bool_(!attribute.get(item(objects, i)).is_none());
  }
  return found;
}

void assign(const py::list& objects, const py::str& name, const py::list& values) {
  if (objects.size() != values.size())
    throw py::value_error("give as many values as objects");
  Attribute attribute(name, false);
  for (std::size_t i = 0; i < objects.size(); ++i) {
    attribute.set(item(objects, i), item(values, i));
  }
}

void assign_all(const py::list& objects, const py::str& name, const py::object& value) {
  Attribute attribute(name, false);
  for (std::size_t i = 0; i < objects.size(); ++i) {
    attribute.set(item(objects, i), value);
  }
}

}  // namespace

const Attribute::Way& Attribute::way_of(PyTypeObject* type) {
  if (last_ < ways_.size() && ways_[last_].type == type) return ways_[last_];
  for (last_ = 0; last_ < ways_.size(); ++last_) {
    if (ways_[last_].type == type) return ways_[last_];
  }
  ways_.push_back(found(type));
  return ways_[last_];
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
  const Way& way = way_of(Py_TYPE(object.ptr()));
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
  const Way& way = way_of(Py_TYPE(object.ptr()));
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
