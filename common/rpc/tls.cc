#include "common/rpc/tls.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509_vfy.h>

#include <fstream>
#include <sstream>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace packtrain {
namespace {

template <auto Free>
struct Freed {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Bio = std::unique_ptr<BIO, Freed<BIO_free>>;
using Certificate = std::unique_ptr<X509, Freed<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY_free>>;
using Store = std::unique_ptr<X509_STORE, Freed<X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, Freed<X509_STORE_CTX_free>>;

// Nobody sits at a terminal.
int NoPassword(char*, int, int, void*) { return -1; }

Bio Open(const std::string& text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  constexpr std::streamsize kBytesMax = 1 << 20;
  std::ifstream file(path, std::ios::binary);
  std::string text(kBytesMax, '\0');
  file.read(text.data(), kBytesMax);
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.empty()) return absl::NotFoundError(absl::StrFormat("%s cannot be read", path));
  return text;
}

absl::StatusOr<std::vector<Certificate>> Certificates(const std::string& path,
                                                      const std::string& text) {
  const Bio bio = Open(text);
  std::vector<Certificate> all;
  while (X509* next = PEM_read_bio_X509(bio.get(), nullptr, NoPassword, nullptr)) {
    all.emplace_back(next);
  }
  ERR_clear_error();
  if (!all.empty()) return all;
  return absl::InvalidArgumentError(absl::StrFormat(
      "%s holds no certificate; allowed: PEM, \"-----BEGIN CERTIFICATE-----\"", path));
}

absl::Status CheckKey(const TlsFiles& files, const std::string& text, X509* certificate) {
  const Key key(PEM_read_bio_PrivateKey(Open(text).get(), nullptr, NoPassword, nullptr));
  const bool fits = key != nullptr && X509_check_private_key(certificate, key.get()) == 1;
  ERR_clear_error();
  if (key == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s holds no private key; allowed: PEM without a password", files.key));
  }
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is not the key of %s", files.key, files.certificate));
}

absl::Status CheckSigned(const TlsFiles& files, const std::vector<Certificate>& authorities,
                         const std::vector<Certificate>& chain) {
  const Store store(X509_STORE_new());
  for (const Certificate& authority : authorities)
    X509_STORE_add_cert(store.get(), authority.get());
  STACK_OF(X509)* between = sk_X509_new_null();
  for (size_t i = 1; i < chain.size(); ++i) sk_X509_push(between, chain[i].get());
  const StoreContext context(X509_STORE_CTX_new());
  X509_STORE_CTX_init(context.get(), store.get(), chain.front().get(), between);
  const bool valid = X509_verify_cert(context.get()) == 1;
  const int error = X509_STORE_CTX_get_error(context.get());
  sk_X509_free(between);
  ERR_clear_error();
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s is not accepted by %s: %s",
                                                    files.certificate, files.ca,
                                                    X509_verify_cert_error_string(error)));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Tls>> ReadTls(const TlsFiles& files) {
  if (!files.given()) return nullptr;
  auto tls = std::make_shared<Tls>();
  ASSIGN_OR_RETURN(tls->ca, ReadFile(files.ca));
  ASSIGN_OR_RETURN(tls->certificate, ReadFile(files.certificate));
  ASSIGN_OR_RETURN(tls->key, ReadFile(files.key));
  ASSIGN_OR_RETURN(const auto authorities, Certificates(files.ca, tls->ca));
  ASSIGN_OR_RETURN(const auto chain, Certificates(files.certificate, tls->certificate));
  RETURN_IF_ERROR(CheckKey(files, tls->key, chain.front().get()));
  RETURN_IF_ERROR(CheckSigned(files, authorities, chain));
  return tls;
}

}  // namespace packtrain
