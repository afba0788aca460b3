// How an extension module that needs a library of its own hands a transport to the
// engine's module, which then needs none.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <stdexcept>
#include <utility>

#include "transport/transport.h"

namespace codedgrad {

namespace py = pybind11;

constexpr const char* kTransportCapsule = "codedgrad.Transport";

struct HandedOver {
  std::unique_ptr<Transport> transport;
};

inline py::capsule hand_over(std::unique_ptr<Transport> transport) {
  return py::capsule(new HandedOver{std::move(transport)}, kTransportCapsule,
                     [](PyObject* capsule) {
                       delete static_cast<HandedOver*>(
                           PyCapsule_GetPointer(capsule, kTransportCapsule));
                     });
}

inline std::unique_ptr<Transport> take_over(py::capsule capsule) {
  auto* handed =
      static_cast<HandedOver*>(PyCapsule_GetPointer(capsule.ptr(), kTransportCapsule));
  if (handed == nullptr) throw py::error_already_set();
  if (!handed->transport) throw std::runtime_error("this transport was taken already");
  return std::move(handed->transport);
}

}  // namespace codedgrad
