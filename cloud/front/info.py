"""What a server tells of itself: models, bundle ids, limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinwire import __version__
from thinwire import labels as label_rules
from thinwire.packet import MAX_PACKET_BYTES
from thinwire.prompts import PROMPT_SETS
from thinwire.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from cloud.engine.engine import Engine
    from cloud.front.limits import ServerOptions


def server_info(engine: Engine, options: ServerOptions) -> pb.GetServerInfoResponse:
    models = engine.models
    loaded = models.clip_of(models.default)
    clip = loaded.heads.clip
    info = pb.GetServerInfoResponse(
        version=__version__,
        clip=pb.ClipInfo(name=clip.name, embed_dim=clip.embed_dim, image_size=clip.image_height, loaded=True),
        device=clip.device_name,
        prompt_sets=list(PROMPT_SETS),
        limits=pb.Limits(
            max_packet_bytes=MAX_PACKET_BYTES,
            max_image_file_bytes=options.max_image_file_bytes,
            max_labels=label_rules.MAX_LABELS,
            max_label_chars=label_rules.MAX_LABEL_CHARS,
            max_templates=label_rules.MAX_TEMPLATES,
            max_texts=options.max_texts,
            max_text_chars=label_rules.MAX_LABEL_CHARS,
            max_stream_window=options.stream_window,
            max_rank_images=options.max_rank_images,
            max_label_sets=options.max_label_sets,
        ),
    )
    for name in models.names():
        entry = info.clips.add(name=name)
        if held := models.clip_of(name):
            other = held.heads.clip
            entry.embed_dim, entry.image_size, entry.loaded = other.embed_dim, other.image_height, True
    for bundle in models.intake.bundles.values():
        entry = info.bundles.add(
            name=bundle.name,
            model_id=bundle.model_id,
            family=bundle.card.wire["family"],
            loaded=models.net_is_loaded(bundle),
            progressive=bundle.model_id in loaded.calibrations,
            fuses_with=sorted(fusion.names) if (fusion := loaded.fusions.get(bundle.model_id)) else (),
        )
        for name, layers in bundle.rates.items():
            entry.rates.add(name=name, layers=layers)
    return info
