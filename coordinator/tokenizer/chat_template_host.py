"""Renders chat templates for the coordinator, which treats them as hostile.

Runs as `python3 -I -c <this text> <deadline seconds> <output limit>`; descriptors 0 and 1 are one
socket. A request is two lengths (u32, little-endian), then the template and a JSON object of
variables. A reply is one status byte, a length and a text:
  R  ready (first message only; the text is the version of Jinja2)
  O  the rendered text
  E  the template or its input is at fault
  M  memory or output limit; the coordinator starts a new child after it
"""
import datetime
import json
import os
import resource
import signal
import struct
import sys


def read_exactly(count):
    parts = []
    while count:
        part = os.read(0, min(count, 1 << 20))
        if not part:
            os._exit(0)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def reply(status, text):
    data = text.encode("utf-8", "replace")
    data = status + struct.pack("<I", len(data)) + data
    while data:
        data = data[os.write(1, data):]


try:
    import jinja2
    import jinja2.ext
    import jinja2.runtime
    import jinja2.sandbox
except ImportError as error:
    reply(b"E", str(error))
    sys.exit(1)


class Generation(jinja2.ext.Extension):
    """{% generation %} marks training targets in some published templates; it prints its body."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, which knows at once what it would find out about the two types that chats
    consist of. Its own look-up raises two exceptions for every `message.role`, which were most of
    the time of a long chat."""

    dict_names = frozenset(dir(dict))
    loop_names = frozenset(name for name in dir(jinja2.runtime.LoopContext) if name[0] != "_")

    def getattr(self, obj, attribute):
        if type(obj) is dict and attribute not in self.dict_names:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if type(obj) is jinja2.runtime.LoopContext and attribute in self.loop_names:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # Jinja's own filter escapes HTML, which models have never seen.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.TemplateError(message)


def strftime_now(layout):
    return datetime.datetime.now().strftime(layout)


def make_environment():
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def describe(error):
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, jinja2.exceptions.SecurityError):
        return f"the sandbox forbids it: {error}"
    if isinstance(error, jinja2.TemplateError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def main():
    deadline_s, output_max = float(sys.argv[1]), int(sys.argv[2])
    environment = make_environment()
    environment.from_string("{{ [{}] | tojson }}{{ 1 | string | trim }}").render()
    strftime_now("%Y")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))
    compiled = {}
    reply(b"R", jinja2.__version__)
    while True:
        template_length, variables_length = struct.unpack("<II", read_exactly(8))
        text = read_exactly(template_length).decode("utf-8", "replace")
        variables = read_exactly(variables_length)
        # The default action ends this process even inside one long native call, so it cannot
        # outlive a coordinator that died while it was busy.
        signal.setitimer(signal.ITIMER_REAL, deadline_s + 1)
        try:
            template = compiled.get(text)
            if template is None:
                if len(compiled) >= 16:
                    compiled.clear()
                template = compiled[text] = environment.from_string(text)
            output = template.render(json.loads(variables))
            if len(output) > output_max:
                reply(b"M", f"the rendered text has {len(output)} characters; at most "
                            f"{output_max} are allowed")
            else:
                reply(b"O", output)
        except MemoryError:
            reply(b"M", "out of memory")
        except Exception as error:  # whatever a template does is its own fault, never ours
            reply(b"E", describe(error)[:1000])
        signal.setitimer(signal.ITIMER_REAL, 0)


main()
