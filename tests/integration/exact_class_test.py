"""The exact class over HTTP: one set of requests, the same token ids and log-probabilities from the
models in one process and from every form of deployment, alone and eight at once, computed anew and
on a shared prefix, in chunks of any size, greedy and sampled."""

import struct
import unittest

from serving import BUILD, PRIMARY, SIDECAR, Server, demo_prompt, in_parallel, one_process

GLM_TINY = BUILD / "golden_models" / "glm52-f32.gguf"
QWEN_TINY = BUILD / "golden_models" / "qwen35moe-f32.gguf"
TOKENS = 24


def topology(models, links=None):
    """models: [(name, path, ubatch, [worker YAML flow maps])]"""
    text = "models:\n"
    for i, (name, path, ubatch, workers) in enumerate(models):
        role = "sidecar" if i else "primary"
        text += f"  - {{name: {name}, role: {role}, path: {path}, ubatch: {ubatch}, threads: 1,\n"
        text += f"     workers: [{', '.join('{device: cpu, %s}' % w for w in workers)}]}}\n"
    if links:
        text += f'links: [{{between: ["*", "*"], transport: {links}}}]\n'
    return text


def stages(*ranges):
    return [f"role: stage, layers: {r}" for r in ranges]


EXPERTS = ["role: experts"]
# (what, primary's workers, sidecar's workers, ubatch of each, pinned transport, all at once first).
# In the primary layers 0, 1 and 4 have an indexer that the layers behind them share.
DEMO_FORMS = [
    ("one stage each, small chunks", stages("0-7"), stages("0-7"), (16, 100), None, False),
    ("two stages over grpc", stages("0-3", "4-7"), stages("0-4", "5-7"), (512, 64), "grpc", False),
    ("a cut inside an indexer's group, with experts workers, at once first",
     stages("0-1", "2-5", "6-7") + EXPERTS, stages("0-2", "3-7") + EXPERTS, (512, 33), "shm", True),
    ("four stages and experts over grpc, at once first",
     stages("0", "1-2", "3-6", "7") + EXPERTS, stages("0-1", "2-3", "4-5", "6-7") + EXPERTS,
     (70, 512), "grpc", True),
    ("one stage with an experts worker", stages("0-7") + EXPERTS, stages("0-7") + EXPERTS,
     (100, 16), None, True),
]


def requests_of(prompts):
    return [{"prompt": prompt, "max_tokens": TOKENS, "temperature": temperature, "seed": seed}
            for prompt in prompts for temperature, seed in ((0, 0), (1, 7 + len(prompt)))]


def outcome(reply):
    """Ids, and log-probabilities to the bit: JSON carries a float32 through unharmed."""
    choice = reply["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def as_float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


class ExactClassTest(unittest.TestCase):
    maxDiff = 2000

    def expect(self, server, wanted, what):
        """wanted: {model: (requests, outcomes)}; asks one at a time."""
        for model, (requests, outcomes) in wanted.items():
            for i, request in enumerate(requests):
                with self.subTest(what, model=model, request=i):
                    self.assertEqual(outcome(server.complete(model, **request)), outcomes[i])

    def expect_at_once(self, server, wanted, what):
        """Eight sequences of each model in flight."""
        for model, (requests, outcomes) in wanted.items():
            jobs = [lambda r=r: server.complete(model, **r) for r in (requests * 8)[:8]]
            for i, reply in enumerate(in_parallel(jobs)):
                with self.subTest(what, model=model, request=i % len(requests)):
                    self.assertEqual(outcome(reply), outcomes[i % len(requests)])

    def reference(self, paths, prompts):
        wanted = {}
        for model, path in paths.items():
            requests = requests_of(prompts[model])
            replies = one_process(path, requests)
            wanted[model] = (requests, [(r["token_ids"], [as_float32(p) for p in r["logprobs"]])
                                        for r in replies])
        return wanted

    def test_every_form_of_the_demo_gives_what_one_process_gives(self):
        paths = {"primary": PRIMARY, "sidecar": SIDECAR}
        # The prose is longer than the primary's top_k of 256.
        prompts = {m: [demo_prompt(m, 3), demo_prompt(m, -1), demo_prompt(m, -2)[:131]]
                   for m in paths}
        wanted = self.reference(paths, prompts)
        for what, primary, sidecar, ubatch, links, at_once_first in DEMO_FORMS:
            text = topology([("primary", PRIMARY, ubatch[0], primary),
                             ("sidecar", SIDECAR, ubatch[1], sidecar)], links)
            with Server(text) as server:
                rounds = [self.expect, self.expect_at_once]
                if at_once_first:
                    rounds.reverse()
                rounds[0](server, wanted, what + ", cold")
                rounds[1](server, wanted, what + ", again")
                again = server.complete("primary", **wanted["primary"][0][2])
                self.assertGreater(again["usage"]["prompt_tokens_details"]["cached_tokens"], 256)

    def test_the_tiny_models_in_f32_agree_over_one_to_four_stages(self):
        paths = {"glm": GLM_TINY, "qwen": QWEN_TINY}
        prompts = {m: [[(5 + 37 * i) % 400 + 3 for i in range(n)] for n in (9, 90)] for m in paths}
        wanted = self.reference(paths, prompts)
        forms = [(stages("0-6"), stages("0-7")),
                 (stages("0-2", "3-6"), stages("0-3", "4-7")),
                 (stages("0-4", "5", "6") + EXPERTS, stages("0", "1-5", "6-7")),
                 (stages("0", "1-2", "3-4", "5-6"), stages("0-1", "2", "3-6", "7") + EXPERTS)]
        for glm, qwen in forms:
            text = topology([("glm", GLM_TINY, 32, glm), ("qwen", QWEN_TINY, 32, qwen)])
            with Server(text) as server:
                what = f"{len(glm)} and {len(qwen)} workers"
                self.expect_at_once(server, wanted, what)
                self.expect(server, wanted, what + ", again")

    def test_two_chats_that_part_in_the_last_turn_share_what_is_before(self):
        text = topology([("primary", PRIMARY, 512, stages("0-3", "4-7")),
                         ("sidecar", SIDECAR, 512, stages("0-3", "4-7"))])
        shared = [{"role": "user", "content": "Tell me a story about a lighthouse and a dog."},
                  {"role": "assistant", "content": "Once there was a dog who kept a light. " * 12}]
        ends = ["What is 12 + 30?", "What does courage mean?"]

        def ask(server, model, end):
            status, reply = server.post("/v1/chat/completions", {
                "model": model, "messages": [*shared, {"role": "user", "content": end}],
                "max_tokens": TOKENS, "temperature": 1, "seed": 11, "logprobs": True,
                "return_token_ids": True})
            self.assertEqual(status, 200, reply)
            choice = reply["choices"][0]
            return (reply["usage"]["prompt_tokens_details"]["cached_tokens"],
                    (choice["token_ids"], choice["logprobs"]["content"]))

        cold = {}
        for order in (ends, ends[::-1]):
            with Server(text) as server:
                for model in ("primary", "sidecar"):
                    cached, cold[model, order[0]] = ask(server, model, order[0])
                    self.assertEqual(cached, 0)
                    cached, warm = ask(server, model, order[1])
                    self.assertGreater(cached, 100, model)
                    if order is ends:
                        cold[model, "warm"] = warm
        for model in ("primary", "sidecar"):
            self.assertEqual(cold[model, "warm"], cold[model, ends[1]])


if __name__ == "__main__":
    unittest.main(verbosity=2)
