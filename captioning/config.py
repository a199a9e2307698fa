"""What a caption run is told: the settings of `hoc caption`, checked before any video is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from datasets_build.child_processes import available_cores
from datasets_build.settings import Settings

MAX_DECODERS = 32  # our choice: 1080p NTU clips for more than one GPU; each takes about 100 MB


def _as_tuple(value: Any) -> Any:
    return (str(value),) if isinstance(value, (str, Path)) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class ServerSettings(Settings):
    """The server of `engine = "server"`: anything that speaks OpenAI's chat-completions protocol.

    Attributes:
        url: its base address, with or without the closing /v1.
        model: the model's name there; None takes the only one that the server lists.
        form: "images" sends the frames as PNG pictures with their times in the text, which every
            server takes; "video" sends vLLM's `data:video/jpeg;base64,frame,frame,...`.
        concurrency: requests in flight.
        timeout_s: seconds that one request may take.
        max_tries: tries of one request on 429, 5xx, time-outs and broken connections.
        api_key_env: environment variable that holds the key, if the server wants one.
        side_multiple: pixels of one visual token's side; height and width of frames are multiples.
    """

    url: str | None = None
    model: str | None = None
    form: Literal["images", "video"] = "images"
    concurrency: int = Field(16, ge=1, le=1024)
    timeout_s: float = Field(300.0, gt=0)
    max_tries: int = Field(6, ge=1)
    api_key_env: str = "OPENAI_API_KEY"
    side_multiple: int = Field(32, ge=1)  # Qwen3-VL: patches of 16 pixels, merged two by two


class CaptionConfig(Settings):
    """Settings of one caption run.

    Attributes:
        videos: folders, globs, single files, lists (.txt, .csv, .parquet), or caption runs whose
            videos are taken again.
        out: the run's folder; it is created, and a run that was stopped there goes on.
        render: `videos` are skeleton sources; their drawings are captioned.
        filters: `action=1-60`, `camera=2,3`, `split=ntu60-xsub/train`; all must hold.
        pilot: only a sample of so many, balanced over classes, subjects and cameras.
        limit: only the first so many, in the order of their ids.
        id_column: column of a list that holds the sample_id.
        path_column: column of a list that holds the path.
        engine: "transformers" generates in this process, "server" asks one.
        server: where and how to ask.
        model: "tiny" (bundled), a local model folder, or a hub id (Qwen/Qwen3-VL-8B-Instruct).
        revision: branch, tag or commit of a hub model.
        prompts: ids of files in captioning/prompts, or paths of prompt files; a clip is asked all.
        num_frames: frames taken of each clip, evenly spaced; even, because the model merges pairs.
        reader: "pyav" or "decord"; both decode in order, which is exact.
        max_pixels: pixels of one frame after resizing; None takes min(224 * 224, the clip budget
            of the model's own processor / num_frames).
        max_new_tokens: the longest caption in tokens.
        batch_tokens: the most tokens of one batch: for each clip those of the video, and those of
            each prompt and its answer, padding included. It is part of the recipe: other batches
            may give other captions.
        dtype: "auto" is float32 on the CPU and the checkpoint's own type on a GPU.
        device: "auto" takes the GPU where there is one; "cuda:1" a certain one.
        device_map: spreads one model over several GPUs, as accelerate does ("auto").
        attention: the attention implementation that transformers is asked for.
        compile: compile the decoding step; pays on a GPU with many batches.
        num_workers: decoding processes; None takes one a core.
        decode_timeout_s: seconds that one clip may take to probe or decode before it is given up.
        rows_per_shard: a shard is closed by the first batch that reaches so many rows.
        max_attempts: a rerun tries failed rows again until they have been tried so often.
        allow_truncated: caption a file that ends early from the frames that it has.
    """

    videos: Texts = Field(min_length=1)
    out: Path
    render: bool = False
    filters: Texts = ()
    pilot: int | None = Field(None, ge=1)
    limit: int | None = Field(None, ge=1)
    id_column: str | None = None
    path_column: str | None = None
    engine: Literal["transformers", "server"] = "transformers"
    server: ServerSettings = ServerSettings()
    model: str = Field("tiny", min_length=1)
    revision: str | None = None
    prompts: Texts = Field(("global",), min_length=1)
    num_frames: int = Field(16, ge=2, le=768)
    reader: Literal["pyav", "decord"] = "pyav"
    max_pixels: int | None = Field(None, ge=1024)
    max_new_tokens: int = Field(64, ge=1, le=4096)
    # our choice: about 35 NTU clips at the default size, under 3 GB of keys and values at 8B
    batch_tokens: int = Field(16384, ge=64)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    device_map: str | None = None
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    compile: bool = False
    num_workers: int | None = Field(None, ge=1, le=256)
    decode_timeout_s: float = Field(120.0, gt=0)
    # our choice: NTU RGB+D 120 gives 112 shards, enough for a hundred GPUs
    rows_per_shard: int = Field(1024, ge=1)
    max_attempts: int = Field(3, ge=1)
    allow_truncated: bool = False

    @property
    def num_decoders(self) -> int:
        """Decoding processes; unless told otherwise one a core, and at most MAX_DECODERS."""
        return self.num_workers or min(MAX_DECODERS, available_cores())

    @field_validator("num_frames")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(
                f"num_frames is {value}, but the model merges frames in pairs; "
                f"give an even number, {value - 1} or {value + 1}"
            )
        return value

    @field_validator("prompts")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"prompts names one prompt twice: {', '.join(value)}")
        return value

    @model_validator(mode="after")
    def _server_has_an_address(self) -> CaptionConfig:
        if self.engine == "server" and not self.server.url:
            raise ValueError("engine 'server' needs server.url, such as http://localhost:8000/v1")
        if self.server.url and "@" in self.server.url:
            raise ValueError(
                "server.url holds a password, and settings are recorded; put the key into the "
                f"environment variable {self.server.api_key_env} instead"
            )
        return self
