#pragma once

// A small blocking HTTP client that can also misbehave. Reads give up after two minutes.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace packtrain {

struct HttpTestReply {
  int status = 0;                              // 0: the connection ended before a whole head
  std::map<std::string, std::string> headers;  // lower-case names
  std::string body;                            // with chunks joined
  bool complete = false;                       // the body ended as announced
};

class HttpTestClient {
 public:
  // Connects to 127.0.0.1. `receive_buffer_bytes` > 0 keeps the kernel from taking more.
  explicit HttpTestClient(uint16_t port, int receive_buffer_bytes = 0);
  ~HttpTestClient();
  HttpTestClient(const HttpTestClient&) = delete;
  HttpTestClient& operator=(const HttpTestClient&) = delete;

  bool connected() const { return socket_ >= 0; }
  void SendRaw(std::string_view bytes);
  // Sends a request on this connection; `headers` are whole lines with CRLF.
  void SendRequest(std::string_view method, std::string_view path, std::string_view body = "",
                   std::string_view headers = "");
  HttpTestReply ReadReply(bool head_only = false);
  HttpTestReply Post(std::string_view path, std::string_view body, std::string_view headers = "");
  HttpTestReply Get(std::string_view path, std::string_view headers = "");
  // Reads until `mark` has arrived; everything read so far, or "" if the connection ended first.
  std::string ReadUntil(std::string_view mark);
  // True if the server closes the connection (after whatever it still sends).
  bool ReadEnd();
  void Close();

 private:
  bool ReadMore();

  int socket_ = -1;
  std::string buffer_;
};

}  // namespace packtrain
