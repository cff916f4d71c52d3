#include <arpa/inet.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/rpc/tls.h"

namespace packtrain {
namespace {

// Every wait of a diagnosis, of which there are at most three.
constexpr timeval kPatience{.tv_sec = 1, .tv_usec = 0};
// How an HTTP/2 client begins; its server answers, a TLS server closes the connection.
constexpr char kPreface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0";

class Socket {
 public:
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  int fd() const { return fd_; }

  // What went wrong, or nothing.
  std::string Connect(const std::string& host, const std::string& port) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (const int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
      return gai_strerror(error);
    }
    fd_ = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &kPatience, sizeof kPatience);
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
    const int error = connect(fd_, found->ai_addr, found->ai_addrlen) == 0 ? 0 : errno;
    freeaddrinfo(found);
    if (error == 0) return "";
    return error == EINPROGRESS ? "no answer" : std::strerror(error);
  }

 private:
  int fd_ = -1;
};

std::string DiagnosePlain(const Socket& socket) {
  constexpr unsigned char kAlert = 0x15;
  unsigned char first = 0;
  ssize_t got = send(socket.fd(), kPreface, sizeof kPreface - 1, MSG_NOSIGNAL);
  if (got > 0) got = recv(socket.fd(), &first, 1, 0);
  if (got < 0 && errno == EAGAIN) return "";
  if (got == 1 && first != kAlert) return "";
  return "it takes no plain connections; it may want certificates";
}

// The library's latest words.
std::string LastError() {
  const unsigned long error = ERR_peek_last_error();
  const char* reason = ERR_reason_error_string(error);
  if (ERR_GET_REASON(error) == SSL_R_WRONG_VERSION_NUMBER) {
    return "it does not use TLS; was it started with --insecure?";
  }
  if (reason == nullptr) return "it closed the connection during the handshake";
  return std::string(absl::StripPrefix(reason, "tlsv1 "));
}

// As gRPC sets its own up.
SSL_CTX* NewContext(const Tls& tls) {
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
  const auto open = [](const std::string& text) {
    return BIO_new_mem_buf(text.data(), static_cast<int>(text.size()));
  };
  BIO* bio = open(tls.ca);
  while (X509* authority = PEM_read_bio_X509(bio, nullptr, nullptr, nullptr)) {
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context), authority);
    X509_free(authority);
  }
  BIO_free(bio);
  bio = open(tls.certificate);
  for (bool own = true; X509* next = PEM_read_bio_X509(bio, nullptr, nullptr, nullptr);
       own = false) {
    own ? SSL_CTX_use_certificate(context, next) : SSL_CTX_add1_chain_cert(context, next);
    X509_free(next);
  }
  BIO_free(bio);
  bio = open(tls.key);
  EVP_PKEY* key = PEM_read_bio_PrivateKey(bio, nullptr, nullptr, nullptr);
  SSL_CTX_use_PrivateKey(context, key);
  EVP_PKEY_free(key);
  BIO_free(bio);
  return context;
}

std::string DiagnoseTls(const Socket& socket, const std::string& host, const Tls& tls) {
  SSL_CTX* context = NewContext(tls);
  SSL* ssl = SSL_new(context);
  X509_VERIFY_PARAM* expected = SSL_get0_param(ssl);
  if (X509_VERIFY_PARAM_set1_ip_asc(expected, host.c_str()) != 1) SSL_set1_host(ssl, host.c_str());
  SSL_set_alpn_protos(ssl, reinterpret_cast<const unsigned char*>("\2h2"), 3);
  SSL_set_fd(ssl, socket.fd());
  ERR_clear_error();
  std::string found;
  char byte = 0;
  if (SSL_connect(ssl) != 1) {
    const long refused = SSL_get_verify_result(ssl);
    found = refused == X509_V_OK ? LastError()
                                 : absl::StrCat("its certificate is not accepted: ",
                                                X509_verify_cert_error_string(refused));
  } else if (SSL_read(ssl, &byte, 1) <= 0) {  // only now does it say what it thinks of ours
    found = absl::StrCat("it does not accept this side's certificate: ", LastError());
  }
  ERR_clear_error();
  SSL_free(ssl);
  SSL_CTX_free(context);
  return found;
}

}  // namespace

std::string DiagnoseConnection(const std::string& address, const Tls* tls) {
  const size_t colon = address.rfind(':');
  if (address.starts_with("unix:") || colon == std::string::npos) return "";
  std::string host = address.substr(0, colon);
  if (host.starts_with("[") && host.ends_with("]")) host = host.substr(1, host.size() - 2);
  Socket socket;
  std::string problem = socket.Connect(host, address.substr(colon + 1));
  if (!problem.empty()) return problem;
  return tls == nullptr ? DiagnosePlain(socket) : DiagnoseTls(socket, host, *tls);
}

}  // namespace packtrain
