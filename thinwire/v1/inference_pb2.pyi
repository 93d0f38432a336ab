from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageInput(_message.Message):
    __slots__ = ("packet", "image_file")
    PACKET_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FILE_FIELD_NUMBER: _ClassVar[int]
    packet: bytes
    image_file: bytes
    def __init__(self, packet: _Optional[bytes] = ..., image_file: _Optional[bytes] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "clip", "device", "bundles", "limits", "prompt_sets", "clips")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SETS_FIELD_NUMBER: _ClassVar[int]
    CLIPS_FIELD_NUMBER: _ClassVar[int]
    version: str
    clip: ClipInfo
    device: str
    bundles: _containers.RepeatedCompositeFieldContainer[BundleInfo]
    limits: Limits
    prompt_sets: _containers.RepeatedScalarFieldContainer[str]
    clips: _containers.RepeatedCompositeFieldContainer[ClipInfo]
    def __init__(self, version: _Optional[str] = ..., clip: _Optional[_Union[ClipInfo, _Mapping]] = ..., device: _Optional[str] = ..., bundles: _Optional[_Iterable[_Union[BundleInfo, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., prompt_sets: _Optional[_Iterable[str]] = ..., clips: _Optional[_Iterable[_Union[ClipInfo, _Mapping]]] = ...) -> None: ...

class ClipInfo(_message.Message):
    __slots__ = ("name", "embed_dim", "image_size", "loaded")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EMBED_DIM_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    name: str
    embed_dim: int
    image_size: int
    loaded: bool
    def __init__(self, name: _Optional[str] = ..., embed_dim: _Optional[int] = ..., image_size: _Optional[int] = ..., loaded: bool = ...) -> None: ...

class BundleInfo(_message.Message):
    __slots__ = ("name", "model_id", "rates", "family", "loaded", "progressive", "fuses_with")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    PROGRESSIVE_FIELD_NUMBER: _ClassVar[int]
    FUSES_WITH_FIELD_NUMBER: _ClassVar[int]
    name: str
    model_id: bytes
    rates: _containers.RepeatedCompositeFieldContainer[Rate]
    family: str
    loaded: bool
    progressive: bool
    fuses_with: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, name: _Optional[str] = ..., model_id: _Optional[bytes] = ..., rates: _Optional[_Iterable[_Union[Rate, _Mapping]]] = ..., family: _Optional[str] = ..., loaded: bool = ..., progressive: bool = ..., fuses_with: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Rate(_message.Message):
    __slots__ = ("name", "layers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    layers: int
    def __init__(self, name: _Optional[str] = ..., layers: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_packet_bytes", "max_image_file_bytes", "max_labels", "max_label_chars", "max_templates", "max_texts", "max_text_chars", "max_stream_window", "max_rank_images", "max_label_sets")
    MAX_PACKET_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_LABELS_FIELD_NUMBER: _ClassVar[int]
    MAX_LABEL_CHARS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXTS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_CHARS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAM_WINDOW_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_LABEL_SETS_FIELD_NUMBER: _ClassVar[int]
    max_packet_bytes: int
    max_image_file_bytes: int
    max_labels: int
    max_label_chars: int
    max_templates: int
    max_texts: int
    max_text_chars: int
    max_stream_window: int
    max_rank_images: int
    max_label_sets: int
    def __init__(self, max_packet_bytes: _Optional[int] = ..., max_image_file_bytes: _Optional[int] = ..., max_labels: _Optional[int] = ..., max_label_chars: _Optional[int] = ..., max_templates: _Optional[int] = ..., max_texts: _Optional[int] = ..., max_text_chars: _Optional[int] = ..., max_stream_window: _Optional[int] = ..., max_rank_images: _Optional[int] = ..., max_label_sets: _Optional[int] = ...) -> None: ...

class ClassifyRequest(_message.Message):
    __slots__ = ("image", "labels", "prompt_set", "templates", "top_k", "frame_id", "label_set", "clip")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SET_FIELD_NUMBER: _ClassVar[int]
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_SET_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    image: ImageInput
    labels: _containers.RepeatedScalarFieldContainer[str]
    prompt_set: str
    templates: _containers.RepeatedScalarFieldContainer[str]
    top_k: int
    frame_id: int
    label_set: str
    clip: str
    def __init__(self, image: _Optional[_Union[ImageInput, _Mapping]] = ..., labels: _Optional[_Iterable[str]] = ..., prompt_set: _Optional[str] = ..., templates: _Optional[_Iterable[str]] = ..., top_k: _Optional[int] = ..., frame_id: _Optional[int] = ..., label_set: _Optional[str] = ..., clip: _Optional[str] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("predictions", "timing", "model", "frame_id", "notes", "opinions")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    OPINIONS_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    timing: Timing
    model: ModelInfo
    frame_id: int
    notes: _containers.RepeatedScalarFieldContainer[str]
    opinions: _containers.RepeatedCompositeFieldContainer[Opinion]
    def __init__(self, predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., frame_id: _Optional[int] = ..., notes: _Optional[_Iterable[str]] = ..., opinions: _Optional[_Iterable[_Union[Opinion, _Mapping]]] = ...) -> None: ...

class Opinion(_message.Message):
    __slots__ = ("bundle", "layers", "weight", "label", "probability")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    layers: int
    weight: float
    label: str
    probability: float
    def __init__(self, bundle: _Optional[str] = ..., layers: _Optional[int] = ..., weight: _Optional[float] = ..., label: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("label", "index", "probability", "similarity")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    label: str
    index: int
    probability: float
    similarity: float
    def __init__(self, label: _Optional[str] = ..., index: _Optional[int] = ..., probability: _Optional[float] = ..., similarity: _Optional[float] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ms", "decode_ms", "synthesis_ms", "clip_ms", "head_ms", "total_ms", "batch_size")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    SYNTHESIS_MS_FIELD_NUMBER: _ClassVar[int]
    CLIP_MS_FIELD_NUMBER: _ClassVar[int]
    HEAD_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    decode_ms: float
    synthesis_ms: float
    clip_ms: float
    head_ms: float
    total_ms: float
    batch_size: int
    def __init__(self, queue_ms: _Optional[float] = ..., decode_ms: _Optional[float] = ..., synthesis_ms: _Optional[float] = ..., clip_ms: _Optional[float] = ..., head_ms: _Optional[float] = ..., total_ms: _Optional[float] = ..., batch_size: _Optional[int] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("clip", "bundle", "layers")
    CLIP_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    clip: str
    bundle: str
    layers: int
    def __init__(self, clip: _Optional[str] = ..., bundle: _Optional[str] = ..., layers: _Optional[int] = ...) -> None: ...

class ClassifyStreamRequest(_message.Message):
    __slots__ = ("request", "progressive", "more", "follows")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PROGRESSIVE_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    request: ClassifyRequest
    progressive: Progressive
    more: MoreLayers
    follows: bool
    def __init__(self, request: _Optional[_Union[ClassifyRequest, _Mapping]] = ..., progressive: _Optional[_Union[Progressive, _Mapping]] = ..., more: _Optional[_Union[MoreLayers, _Mapping]] = ..., follows: bool = ...) -> None: ...

class Progressive(_message.Message):
    __slots__ = ("max_layers", "confidence", "others")
    MAX_LAYERS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    max_layers: int
    confidence: float
    others: _containers.RepeatedCompositeFieldContainer[Offer]
    def __init__(self, max_layers: _Optional[int] = ..., confidence: _Optional[float] = ..., others: _Optional[_Iterable[_Union[Offer, _Mapping]]] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("model_id", "layers")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    model_id: bytes
    layers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model_id: _Optional[bytes] = ..., layers: _Optional[_Iterable[int]] = ...) -> None: ...

class MoreLayers(_message.Message):
    __slots__ = ("frame_id", "layers", "packet_crc32c")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    PACKET_CRC32C_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    layers: _containers.RepeatedScalarFieldContainer[bytes]
    packet_crc32c: int
    def __init__(self, frame_id: _Optional[int] = ..., layers: _Optional[_Iterable[bytes]] = ..., packet_crc32c: _Optional[int] = ...) -> None: ...

class ClassifyStreamResponse(_message.Message):
    __slots__ = ("frame_id", "result", "error", "need_more")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NEED_MORE_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    result: ClassifyResponse
    error: FrameError
    need_more: NeedMore
    def __init__(self, frame_id: _Optional[int] = ..., result: _Optional[_Union[ClassifyResponse, _Mapping]] = ..., error: _Optional[_Union[FrameError, _Mapping]] = ..., need_more: _Optional[_Union[NeedMore, _Mapping]] = ...) -> None: ...

class NeedMore(_message.Message):
    __slots__ = ("layer", "so_far", "confidence", "model_id")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    SO_FAR_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    layer: int
    so_far: ClassifyResponse
    confidence: float
    model_id: bytes
    def __init__(self, layer: _Optional[int] = ..., so_far: _Optional[_Union[ClassifyResponse, _Mapping]] = ..., confidence: _Optional[float] = ..., model_id: _Optional[bytes] = ...) -> None: ...

class FrameError(_message.Message):
    __slots__ = ("code", "reason", "message", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("image", "frame_id", "clip")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    image: ImageInput
    frame_id: int
    clip: str
    def __init__(self, image: _Optional[_Union[ImageInput, _Mapping]] = ..., frame_id: _Optional[int] = ..., clip: _Optional[str] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("embedding", "timing", "model", "frame_id")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    embedding: Embedding
    timing: Timing
    model: ModelInfo
    frame_id: int
    def __init__(self, embedding: _Optional[_Union[Embedding, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., frame_id: _Optional[int] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class EncodeTextRequest(_message.Message):
    __slots__ = ("texts", "prompt_set", "templates", "clip")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SET_FIELD_NUMBER: _ClassVar[int]
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    prompt_set: str
    templates: _containers.RepeatedScalarFieldContainer[str]
    clip: str
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., prompt_set: _Optional[str] = ..., templates: _Optional[_Iterable[str]] = ..., clip: _Optional[str] = ...) -> None: ...

class EncodeTextResponse(_message.Message):
    __slots__ = ("embeddings", "model")
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    embeddings: _containers.RepeatedCompositeFieldContainer[Embedding]
    model: ModelInfo
    def __init__(self, embeddings: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("image", "text", "texts", "images", "prompt_set", "templates", "top_k", "clip")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SET_FIELD_NUMBER: _ClassVar[int]
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    image: ImageInput
    text: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    images: _containers.RepeatedCompositeFieldContainer[ImageInput]
    prompt_set: str
    templates: _containers.RepeatedScalarFieldContainer[str]
    top_k: int
    clip: str
    def __init__(self, image: _Optional[_Union[ImageInput, _Mapping]] = ..., text: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., images: _Optional[_Iterable[_Union[ImageInput, _Mapping]]] = ..., prompt_set: _Optional[str] = ..., templates: _Optional[_Iterable[str]] = ..., top_k: _Optional[int] = ..., clip: _Optional[str] = ...) -> None: ...

class RankResponse(_message.Message):
    __slots__ = ("ranked", "failures", "model")
    RANKED_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ranked: _containers.RepeatedCompositeFieldContainer[Ranked]
    failures: _containers.RepeatedCompositeFieldContainer[RankFailure]
    model: ModelInfo
    def __init__(self, ranked: _Optional[_Iterable[_Union[Ranked, _Mapping]]] = ..., failures: _Optional[_Iterable[_Union[RankFailure, _Mapping]]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class Ranked(_message.Message):
    __slots__ = ("index", "similarity")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    index: int
    similarity: float
    def __init__(self, index: _Optional[int] = ..., similarity: _Optional[float] = ...) -> None: ...

class RankFailure(_message.Message):
    __slots__ = ("index", "error")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    index: int
    error: FrameError
    def __init__(self, index: _Optional[int] = ..., error: _Optional[_Union[FrameError, _Mapping]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("packet",)
    PACKET_FIELD_NUMBER: _ClassVar[int]
    packet: bytes
    def __init__(self, packet: _Optional[bytes] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("png", "width", "height", "model")
    PNG_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    png: bytes
    width: int
    height: int
    model: ModelInfo
    def __init__(self, png: _Optional[bytes] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class RegisterLabelsRequest(_message.Message):
    __slots__ = ("labels", "prompt_set", "templates", "clip")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SET_FIELD_NUMBER: _ClassVar[int]
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedScalarFieldContainer[str]
    prompt_set: str
    templates: _containers.RepeatedScalarFieldContainer[str]
    clip: str
    def __init__(self, labels: _Optional[_Iterable[str]] = ..., prompt_set: _Optional[str] = ..., templates: _Optional[_Iterable[str]] = ..., clip: _Optional[str] = ...) -> None: ...

class RegisterLabelsResponse(_message.Message):
    __slots__ = ("label_set", "labels", "notes")
    LABEL_SET_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    label_set: str
    labels: int
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, label_set: _Optional[str] = ..., labels: _Optional[int] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class RegisterLabelsPartRequest(_message.Message):
    __slots__ = ("upload", "total_bytes", "offset", "data")
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    upload: bytes
    total_bytes: int
    offset: int
    data: bytes
    def __init__(self, upload: _Optional[bytes] = ..., total_bytes: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class RegisterLabelsPartResponse(_message.Message):
    __slots__ = ("held_bytes", "registered", "texts_done", "texts")
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_FIELD_NUMBER: _ClassVar[int]
    TEXTS_DONE_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    held_bytes: int
    registered: RegisterLabelsResponse
    texts_done: int
    texts: int
    def __init__(self, held_bytes: _Optional[int] = ..., registered: _Optional[_Union[RegisterLabelsResponse, _Mapping]] = ..., texts_done: _Optional[int] = ..., texts: _Optional[int] = ...) -> None: ...
