from thinwire.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FrameFilter(_message.Message):
    __slots__ = ("device_ids", "labels", "after_unix_ms", "before_unix_ms", "ids")
    DEVICE_IDS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    AFTER_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    device_ids: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.RepeatedScalarFieldContainer[str]
    after_unix_ms: int
    before_unix_ms: int
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, device_ids: _Optional[_Iterable[str]] = ..., labels: _Optional[_Iterable[str]] = ..., after_unix_ms: _Optional[int] = ..., before_unix_ms: _Optional[int] = ..., ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SearchFramesRequest(_message.Message):
    __slots__ = ("text", "image", "like_id", "filter", "top_k", "clip", "with_packets")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LIKE_ID_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    WITH_PACKETS_FIELD_NUMBER: _ClassVar[int]
    text: str
    image: _inference_pb2.ImageInput
    like_id: int
    filter: FrameFilter
    top_k: int
    clip: str
    with_packets: bool
    def __init__(self, text: _Optional[str] = ..., image: _Optional[_Union[_inference_pb2.ImageInput, _Mapping]] = ..., like_id: _Optional[int] = ..., filter: _Optional[_Union[FrameFilter, _Mapping]] = ..., top_k: _Optional[int] = ..., clip: _Optional[str] = ..., with_packets: bool = ...) -> None: ...

class SearchFramesResponse(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[FoundFrame]
    def __init__(self, frames: _Optional[_Iterable[_Union[FoundFrame, _Mapping]]] = ...) -> None: ...

class FoundFrame(_message.Message):
    __slots__ = ("id", "similarity", "unix_ms", "device_id", "predictions", "model", "packet", "packet_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PACKET_FIELD_NUMBER: _ClassVar[int]
    PACKET_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: int
    similarity: float
    unix_ms: int
    device_id: str
    predictions: _containers.RepeatedCompositeFieldContainer[_inference_pb2.Prediction]
    model: _inference_pb2.ModelInfo
    packet: bytes
    packet_bytes: int
    def __init__(self, id: _Optional[int] = ..., similarity: _Optional[float] = ..., unix_ms: _Optional[int] = ..., device_id: _Optional[str] = ..., predictions: _Optional[_Iterable[_Union[_inference_pb2.Prediction, _Mapping]]] = ..., model: _Optional[_Union[_inference_pb2.ModelInfo, _Mapping]] = ..., packet: _Optional[bytes] = ..., packet_bytes: _Optional[int] = ...) -> None: ...

class DeleteFramesRequest(_message.Message):
    __slots__ = ("filter", "all")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    filter: FrameFilter
    all: bool
    def __init__(self, filter: _Optional[_Union[FrameFilter, _Mapping]] = ..., all: bool = ...) -> None: ...

class DeleteFramesResponse(_message.Message):
    __slots__ = ("deleted",)
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    def __init__(self, deleted: _Optional[int] = ...) -> None: ...

class GetStoreInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStoreInfoResponse(_message.Message):
    __slots__ = ("frames", "bytes", "oldest_unix_ms", "newest_unix_ms", "device_ids", "dropped")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    NEWEST_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_IDS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    frames: int
    bytes: int
    oldest_unix_ms: int
    newest_unix_ms: int
    device_ids: _containers.RepeatedScalarFieldContainer[str]
    dropped: int
    def __init__(self, frames: _Optional[int] = ..., bytes: _Optional[int] = ..., oldest_unix_ms: _Optional[int] = ..., newest_unix_ms: _Optional[int] = ..., device_ids: _Optional[_Iterable[str]] = ..., dropped: _Optional[int] = ...) -> None: ...
