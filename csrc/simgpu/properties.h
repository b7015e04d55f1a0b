// Properties and attributes of the simulated card.
#pragma once

#include <string>

#include "simgpu/errors.h"

namespace poolalloc::simgpu {

struct Device;

// One device attribute by CUDA's number; unknown ones within CUDA's range are 0, as an absent feature is.
Error device_attribute(const Device& device, int attribute, int* value);

// "0000:1a:00.0"; every device has its own bus.
std::string pci_bus_id(const Device& device);
void fill_uuid(const Device& device, char (&uuid)[16]);

// cudaDeviceProp of CUDA 12 or 13.
template <class Properties>
void fill_properties(const Device& device, Properties& properties);

}  // namespace poolalloc::simgpu
