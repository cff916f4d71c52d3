#pragma once

#include <string>

namespace packtrain {

// Paths of PEM files for connections to other hosts: all three or none.
struct TlsFiles {
  std::string ca;           // signs the certificates of all processes
  std::string certificate;  // of this process, followed by those between it and the CA, if any
  std::string key;          // of that certificate, without a password

  bool given() const { return !ca.empty(); }
};

}  // namespace packtrain
