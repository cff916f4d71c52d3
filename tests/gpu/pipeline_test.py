"""One model over one to four stages on one card, with and without experts on the CPU, over every
transport: the same token ids and log-probabilities to the bit. Prints what each link measured."""

import unittest

from one_card import EXPERTS, GLM, QWEN, SeparateNcclHosts, answers, links, model, stage, topology
from serving import Server

# (what, stages of the primary and the sidecar, pinned transport). Cuts of the first fall in front of
# a full indexer layer and inside its group.
FORMS = [
    ("two stages, measured", [stage("0-2"), stage("3-6")], [stage("0-3"), stage("4-7")], None),
    ("two stages over shm", [stage("0-3"), stage("4-6")], [stage("0-4"), stage("5-7")], "shm"),
    ("two stages over grpc", [stage("0-1"), stage("2-6")], [stage("0-1"), stage("2-7")], "grpc"),
    ("two stages over nccl", [stage("0-4"), stage("5-6")], [stage("0-3"), stage("4-7")], "nccl"),
    ("four stages over nccl", [stage("0"), stage("1-2"), stage("3-4"), stage("5-6")],
     [stage("0-1"), stage("2-3"), stage("4-5"), stage("6-7")], "nccl"),
]
# With experts on the CPU, those of layers 3 and 5 excepted: that is other arithmetic, the same in all.
EXPERTS_FORMS = [
    ("two stages over grpc", [stage("0-3", "3"), stage("4-6", "5"), EXPERTS], "grpc"),
    ("two stages over nccl", [stage("0-4", "3"), stage("5-6", "5"), EXPERTS], "nccl"),
]


class PipelineTest(unittest.TestCase):
    def serve(self, what, glm, qwen, transport):
        models = [model("glm", GLM, glm, ubatch=64)]
        if qwen:
            models.append(model("qwen", QWEN, qwen, "sidecar", ubatch=64))
        with SeparateNcclHosts(), Server(topology(models, transport)) as server:
            for link in links(server):
                print(f"  {what}: {link}", flush=True)
            if transport == "nccl":
                self.assertIn("stage0 - stage1: nccl", server.log())
            return [answers(server, name) for name in ("glm", "qwen")[:len(models)]]

    def test_every_form_gives_what_one_stage_gives(self):
        wanted = self.serve("one stage", [stage()], [stage()], None)
        self.assertEqual(wanted, self.serve("one stage again", [stage()], [stage()], None))
        for form in FORMS:
            with self.subTest(form[0]):
                self.assertEqual(self.serve(*form), wanted)

    def test_experts_on_the_cpu_serve_every_form_alike(self):
        wanted = None
        for what, workers, transport in EXPERTS_FORMS:
            with self.subTest(what):
                got = self.serve(what + " and experts", workers, None, transport)
                wanted = wanted or got
                self.assertEqual(got, wanted)


if __name__ == "__main__":
    unittest.main(verbosity=2)
