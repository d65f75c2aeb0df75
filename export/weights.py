"""Where weights come from: published checkpoints, safetensors, the Hugging Face hub, or a seed.

Sources
    a folder with the published files          names from ``configuration.json`` if it is there
    a folder of safetensors                    ``unet.safetensors``, ``autoencoder.safetensors`` and
                                               ``text_encoder.safetensors``, or ``image_encoder.safetensors``
                                               (published names in folders below it are found too)
    a ``.safetensors`` file                    all of them, each tensor's name after ``unet.``, ``autoencoder.``
                                               and so on
    ``hf:ORG/NAME`` or ``hf:ORG/NAME@REVISION``    a repository laid out as either of the folders
    ``random:SEED``                            made up, for trying things out: the pictures are noise

A checkpoint is data. Pickled code never runs: whatever a file refers to beyond tensors and plain containers
becomes an :class:`Inert` object, or the file is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from v2v.core.components import ComponentName
from v2v.core.configs import ModelConfig
from v2v.core.errors import V2VError, first_line
from v2v.core.progress import PhaseProgress
from v2v.core.published import PUBLISHED, PublishedFile
from v2v.export.models.autoencoder import Autoencoder
from v2v.export.models.control import ControlledUNet
from v2v.export.models.diffusers_names import are_diffusers, from_diffusers
from v2v.export.models.image_encoder import CONTEXT_LAYERS, ImageEncoder
from v2v.export.models.text_encoder import POOLING_HEAD, TextEncoder
from v2v.export.models.unet import FRAME_RATE_LAYERS, UNet, told_frame_rate

Network = Literal["unet", "autoencoder", "text_encoder", "image_encoder"]
Kind = Literal["random", "published", "trained"]

NETWORK_OF: Mapping[ComponentName, Network] = {
    "text_encoder": "text_encoder",
    "image_encoder": "image_encoder",
    "vae_encoder": "autoencoder",
    "unet": "unet",
    "unet_full": "unet",
    "unet_outer": "unet",
    "vae_decoder": "autoencoder",
}

METHOD_OF: Mapping[ComponentName, str] = {
    "text_encoder": "forward",
    "image_encoder": "forward",
    "vae_encoder": "encode",
    "unet": "forward",
    "unet_full": "full",
    "unet_outer": "outer",
    "vae_decoder": "decode",
}
"""Which of its network's methods a component is."""


def networks_of(model: ModelConfig) -> tuple[Network, ...]:
    """The networks that a model's weights are for."""
    return "unet", "autoencoder", "image_encoder" if model.takes_pictures else "text_encoder"


class WeightsError(V2VError):
    """Weights that cannot be found, read or trusted, or that belong to another model."""


_LARGEST_CONFIGURATION = 1 << 20  # bytes
_METADATA = "v2v"  # the one entry of a safetensors file's metadata: {"kind": ..., "model": ...}


@dataclass(frozen=True)
class Weights:
    """The weights of a model's networks, read when asked for.

    Attributes:
        source: what :func:`load_weights` was given.
        kind: ``random`` gives noise; ``published`` are the authors' files, unchanged; ``trained`` any others.
        identity: hexadecimal SHA-256; the same content has the same identity.
        model: the model that they fit.
    """

    source: str
    kind: Kind
    identity: str
    model: ModelConfig
    read: Callable[
        [Network], tuple[Mapping[str, Tensor], str]
    ]  # tensors as stored, and where they were found

    def state_dict(self, network: Network) -> dict[str, Tensor]:
        """Read one network's tensors, in the type they are stored in.

        Nothing is kept: hold one network at a time where memory is short.

        Raises:
            WeightsError: the file cannot be read, or a tensor is missing, unknown or has another shape.
        """
        tensors, origin = self.read(network)
        if network == "autoencoder" and are_diffusers(tensors):
            tensors = from_diffusers(tensors)
        return _checked(tensors, network, self.model, origin)

    def load(self, network: Network, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Make one network with these weights, ready to infer.

        Raises:
            WeightsError: as :meth:`state_dict`.
        """
        module = make_network(network, self.model)
        module.load_state_dict(self.state_dict(network), strict=True, assign=True)
        return module.to(dtype).requires_grad_(False).eval()


def make_network(network: Network, model: ModelConfig) -> nn.Module:
    """Make one network without memory for its weights (on PyTorch's ``meta`` device)."""
    with torch.device("meta"):
        if network == "unet":
            return UNet(model.unet) if model.unet.control == "none" else ControlledUNet(model.unet)
        if network == "autoencoder":
            return Autoencoder(model.autoencoder)
        if network == "image_encoder":
            assert model.image_encoder is not None, f"model {model.name} has no image encoder"
            return ImageEncoder(model.image_encoder)
        assert model.text_encoder is not None, f"model {model.name} has no text encoder"
        return TextEncoder(model.text_encoder)


def load_weights(
    source: str, model: ModelConfig, progress: PhaseProgress | None = None, *, verify: bool = True
) -> Weights:
    """Find the weights that ``source`` names (see the top of this module) and identify them.

    Files are read once to compute their digests; tensors are read later, by :meth:`Weights.state_dict`.

    Of a model whose decoder mixes frames an autoencoder may be given whose decoder does not; the result then fits the
    model :attr:`~v2v.core.configs.ModelConfig.with_plain_decoder`.

    Args:
        source: where the weights come from.
        model: what they should fit.
        progress: told which file is being read and how far it is, 0..1.
        verify: refuse a file that has a published file's name and not its digest.

    Raises:
        WeightsError: nothing is there, or a file is not what its name promises.
    """
    found = _find(source, model, progress, verify)
    return _with_its_decoder(found) if model.autoencoder.temporal and found.kind != "random" else found


def _with_its_decoder(weights: Weights) -> Weights:
    """``weights``, fitting the model with the decoder that they are for."""
    tensors, origin = weights.read("autoencoder")
    if any("time_mix_conv" in name or "time_conv_out" in name for name in tensors):
        return weights
    model = weights.model
    temporal = PUBLISHED[model.name].files["autoencoder"] if model.name in PUBLISHED else None
    advice = f"; {temporal.name} of hf:{temporal.repository} holds one" if temporal else ""
    warnings.warn(
        f"{origin} holds no temporal decoder: {model.name} decodes frames one by one, which may flicker{advice}",
        stacklevel=3,
    )
    return replace(weights, model=model.with_plain_decoder)


def _find(source: str, model: ModelConfig, progress: PhaseProgress | None, verify: bool) -> Weights:
    scheme, _, argument = source.partition(":")
    if scheme == "random":
        return _random(argument, source, model)
    if scheme == "hf":
        return _from_folder(_HubFolder(argument), source, model, progress, verify)
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(_LocalFolder(path), source, model, progress, verify)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise WeightsError(f"{path}: a single file of weights must be .safetensors; or name its folder")
        return _from_files(dict.fromkeys(networks_of(model), path), True, source, model, progress)
    raise WeightsError(f"{source}: no such file or folder (weights may also be random:SEED or hf:ORG/NAME)")


def save_safetensors(
    weights: Weights, target: Path, *, dtype: torch.dtype | None = None, overwrite: bool = False
) -> list[Path]:
    """Write weights as safetensors: one file if ``target`` ends in ``.safetensors``, else a folder of one per network.

    One network is in memory at a time (all for a single file). Each file appears when it is complete.

    Args:
        weights: what to write.
        target: file or folder; folders are made.
        dtype: convert to this type; None keeps the stored one.
        overwrite: replace files that exist.

    Returns:
        The files written.

    Raises:
        WeightsError: a file exists already, or cannot be written.
    """
    single = target.suffix == ".safetensors"
    networks = networks_of(weights.model)
    files = {network: target if single else target / f"{network}.safetensors" for network in networks}
    for path in files.values():
        if path.exists() and not overwrite:
            raise WeightsError(f"{path} exists already; choose another place or remove it first")
    metadata = {_METADATA: json.dumps({"kind": weights.kind, "model": weights.model.name})}

    def tensors(network: Network) -> dict[str, Tensor]:
        prefix = f"{network}." if single else ""
        state = weights.state_dict(network)
        return {prefix + name: state[name].to(dtype or state[name].dtype).contiguous() for name in state}

    if single:
        _write_atomically({k: v for n in networks for k, v in tensors(n).items()}, target, metadata)
        return [target]
    for network, path in files.items():
        _write_atomically(tensors(network), path, metadata)
    return list(files.values())


def _write_atomically(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, unfinished, metadata)
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be written ({error})") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


# Checking ---------------------------------------------------------------------------------------------------


def _checked(
    tensors: Mapping[str, Tensor], network: Network, model: ModelConfig, origin: str
) -> dict[str, Tensor]:
    """``tensors`` if they are exactly those of ``network``."""
    expected = {name: tuple(value.shape) for name, value in make_network(network, model).state_dict().items()}
    optional = POOLING_HEAD if network == "text_encoder" else ()
    missing = [name for name in expected if name not in tensors and name not in optional]
    unknown = [name for name in tensors if name not in expected]
    misshapen = [
        f"{name} is {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    faults = [
        f"{fault}: {_some(names)}"
        for fault, names in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
        if names
    ]
    if faults:
        raise WeightsError(f"{origin}: not the {network} of {model.name}; {'; '.join(faults)}")
    return {name: tensors[name] for name in expected if name in tensors}


def _some(names: list[str], at_most: int = 4) -> str:
    """The first few names and how many more there are."""
    others = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {others} more" if others > 0 else "")


def _digest(path: Path, progress: PhaseProgress | None) -> str:
    """SHA-256 of a file."""
    digest, bytes_read, size = hashlib.sha256(), 0, max(path.stat().st_size, 1)
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
            bytes_read += len(block)
            if progress:
                progress(f"checking {path.name}", bytes_read / size)
    return digest.hexdigest()


def _identity(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# Files ------------------------------------------------------------------------------------------------------


class _Folder(Protocol):
    """A folder of weights, on this machine or on the hub."""

    name: str

    def names(self) -> list[str]: ...

    def file(self, name: str) -> Path: ...


class _LocalFolder:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def names(self) -> list[str]:
        return [
            path.relative_to(self._path).as_posix()
            for pattern in ("*", "*/*")
            for path in self._path.glob(pattern)
        ]

    def file(self, name: str) -> Path:
        return self._path / name


class _HubFolder:
    """A repository on the Hugging Face hub; files are downloaded into the hub's own cache when asked for."""

    def __init__(self, address: str) -> None:
        self.name = f"hf:{address}"
        repository, _, revision = address.partition("@")
        self._repository: dict[str, Any] = {"repo_id": repository, "revision": revision or None}

    def names(self) -> list[str]:
        from huggingface_hub import list_repo_files

        return list(self._call(list_repo_files))

    def file(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(self._call(hf_hub_download, filename=name))

    def _call(self, function: Callable[..., Any], **arguments: Any) -> Any:
        try:
            return function(**self._repository, **arguments)
        except Exception as error:  # the hub, its cache and the network each have errors of their own
            asked = arguments.get("filename", "its list of files")
            raise WeightsError(f"{self.name}: {asked}: {first_line(error)}") from error


def _from_folder(
    folder: _Folder, source: str, model: ModelConfig, progress: PhaseProgress | None, verify: bool
) -> Weights:
    """Weights in a folder: safetensors if all are there, else the published files."""
    names = set(folder.names())
    safetensors = {each: f"{each}.safetensors" for each in networks_of(model)}
    if names.issuperset(safetensors.values()):
        return _from_files(
            {n: folder.file(f) for n, f in safetensors.items()}, False, source, model, progress
        )
    places = _published_places(folder, names, model)
    lacking = ", ".join(usual for _, usual, place in places if place is None)
    if lacking or not places:
        files = ", ".join(safetensors.values())
        has = f"has neither {files} nor the published files; of those" if places else f"should have {files};"
        lacking = lacking or ", ".join(name for name in safetensors.values() if name not in names)
        raise WeightsError(f"{folder.name}: {has} it lacks {lacking}")
    files_found = {network: place[0].file(place[1]) for network, _, place in places if place is not None}
    return _from_published(files_found, source, model, progress, verify)


class _ModelInConfiguration(msgspec.Struct):
    model_args: dict[str, Any]


class _Configuration(msgspec.Struct):
    """What is read of a published ``configuration.json``."""

    model: _ModelInConfiguration


def _published_places(
    folder: _Folder, names: set[str], model: ModelConfig
) -> list[tuple[Network, str, tuple[_Folder, str] | None]]:
    """For each network the usual name of its checkpoint, and where it is; nothing if nothing was published.

    Its name is the one in ``configuration.json``, else one of the published ones. What a repository on the hub does not
    have may be in another that its authors took it from.
    """
    if model.name not in PUBLISHED:
        return []
    arguments = _configuration(folder) if "configuration.json" in names else {}
    places: list[tuple[Network, str, tuple[_Folder, str] | None]] = []
    for network in networks_of(model):
        usual = PUBLISHED[model.name].files[network]
        named = arguments.get(usual.argument)
        if named is not None:
            if PurePosixPath(str(named)).name != str(named):
                raise WeightsError(
                    f"{folder.name}: configuration.json names a file outside the folder: {named}"
                )
            place = (folder, str(named)) if named in names else None
            places.append((network, str(named), place))
            continue
        place = _place_in(folder, names, usual)
        if place is None and isinstance(folder, _HubFolder) and usual.repository is not None:
            elsewhere = _HubFolder(usual.repository)
            place = _place_in(elsewhere, set(elsewhere.names()), usual)
        places.append((network, usual.name, place))
    return places


def _place_in(folder: _Folder, names: set[str], usual: PublishedFile) -> tuple[_Folder, str] | None:
    for file in usual.choices:
        for name in (file.name, f"{file.folder}/{file.name}"):
            if name in names:
                return folder, name
    return None


def _configuration(folder: _Folder) -> dict[str, Any]:
    """What ``configuration.json`` says of the checkpoints."""
    path = folder.file("configuration.json")
    try:
        with path.open("rb") as file:
            found = msgspec.json.decode(file.read(_LARGEST_CONFIGURATION), type=_Configuration)
        return found.model.model_args
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read as a model's configuration ({error})") from error


def _from_files(
    files: dict[Network, Path],
    prefixed: bool,
    source: str,
    model: ModelConfig,
    progress: PhaseProgress | None,
) -> Weights:
    """Weights in safetensors, either one file per network or one file with a prefix per network."""
    digests = {path: _digest(path, progress) for path in dict.fromkeys(files.values())}
    kinds = {_kind(path) for path in digests}

    def read(network: Network) -> tuple[dict[str, Tensor], str]:
        path = files[network]
        with _open_safetensors(path) as file:
            if not prefixed:
                return {name: file.get_tensor(name) for name in file.keys()}, str(path)  # noqa: SIM118
            strange = [n for n in file.keys() if n.partition(".")[0] not in files]  # noqa: SIM118
            if strange:
                raise WeightsError(f"{path}: unknown tensors: {_some(strange)}")
            own = [name for name in file.keys() if name.startswith(f"{network}.")]  # noqa: SIM118
            return {name.partition(".")[2]: file.get_tensor(name) for name in own}, str(path)

    kind: Kind = kinds.pop() if len(kinds) == 1 else "trained"
    return Weights(source, kind, _identity([digests[path] for path in files.values()]), model, read)


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read as safetensors ({error})") from error


def _kind(path: Path) -> Kind:
    """What a safetensors file says of where its weights came from."""
    with _open_safetensors(path) as file:
        described = (file.metadata() or {}).get(_METADATA, "{}")
    try:
        kind = json.loads(described).get("kind")
    except (ValueError, AttributeError, RecursionError):
        kind = None
    return kind if kind in ("random", "published") else "trained"


def _from_published(
    files: dict[Network, Path], source: str, model: ModelConfig, progress: PhaseProgress | None, verify: bool
) -> Weights:
    """Weights in the published form, pickled or not."""
    publication = PUBLISHED[model.name].files
    digests: dict[Network, str] = {}
    unchanged = True
    for network, path in files.items():
        choices = publication[network].choices
        known = next((file for file in choices if file.name == path.name), None)
        size = path.stat().st_size
        doubt = f"{path}: is not the published file; download it again, or load it without verification"
        if verify and known and known.bytes is not None and size != known.bytes:
            raise WeightsError(f"{doubt} ({size} bytes instead of {known.bytes})")
        digests[network] = _digest(path, progress)
        if verify and known and known.sha256 is not None and digests[network] != known.sha256:
            raise WeightsError(f"{doubt} (sha256 {digests[network]} instead of {known.sha256})")
        by_name_alone = known is not None and known.sha256 is None
        unchanged &= by_name_alone or digests[network] in [file.sha256 for file in choices]

    def read(network: Network) -> tuple[dict[str, Tensor], str]:
        tensors = _unwrapped(_read_checkpoint(files[network]), network, model, files[network])
        if network == "image_encoder":  # its last layers were trained, and are kept, with the UNet
            kept = _tensors(_read_checkpoint(files["unet"]))
            tensors |= {name: kept[name] for name in kept if name.startswith(CONTEXT_LAYERS)}
        return tensors, str(files[network])

    identity = _identity([*digests.values()])
    return Weights(source, "published" if unchanged else "trained", identity, model, read)


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    if path.suffix != ".safetensors":
        return read_pickle(path)
    with _open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _tensors(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of a published checkpoint by their names."""
    inner = checkpoint.get("state_dict", checkpoint)
    return {name: value for name, value in inner.items() if isinstance(value, Tensor)}


def _unwrapped(
    checkpoint: Mapping[str, Any], network: Network, model: ModelConfig, where: Path
) -> dict[str, Tensor]:
    """The tensors of one network in a published checkpoint, which may hold more than that network."""
    tensors = _tensors(checkpoint)
    leftovers = PUBLISHED[model.name].leftovers
    if network == "unet" and leftovers:
        tensors = {name: value for name, value in tensors.items() if name not in leftovers}
    if network == "autoencoder":  # Stable Diffusion's file holds a UNet and a text encoder as well
        prefix = "first_stage_model."
        own = {
            n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)
        } or tensors
        if "decoder.conv_out.time_mix_conv.weight" in own and "quant_conv.weight" not in own:
            own |= _no_quantiser(2 * model.unet.latent_channels)  # what Stability's own file leaves out
        return own
    if network == "unet" and model.fps is not None:
        if not any(name.startswith(FRAME_RATE_LAYERS) for name in tensors):
            raise WeightsError(
                f"{where}: has no embedding of the frame rate; it is not the unet of {model.name}"
            )
        tensors = told_frame_rate(tensors, model.fps)
    if network == "unet" and model.takes_pictures:
        return {name: value for name, value in tensors.items() if not name.startswith(CONTEXT_LAYERS)}
    if network in ("text_encoder", "image_encoder"):  # one file holds both towers
        image = network == "image_encoder"
        return {name: value for name, value in tensors.items() if name.startswith("visual.") == image}
    return tensors


def _no_quantiser(channels: int) -> dict[str, Tensor]:
    return {
        "quant_conv.weight": torch.eye(channels)[..., None, None],
        "quant_conv.bias": torch.zeros(channels),
    }


# Pickles ----------------------------------------------------------------------------------------------------


class Inert:
    """Stands for any object of a checkpoint that is not a tensor or a plain container; does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_pickle(path: Path) -> Mapping[str, Any]:
    """Read a file that ``torch.save`` wrote without running any code in it.

    PyTorch's restricted unpickler takes tensors and plain containers; every other name that the file refers
    to (for the Stable Diffusion checkpoint a training callback and NumPy scalars) is bound to :class:`Inert`.
    Tensors stay on disk until they are used where the format allows it.

    Raises:
        WeightsError: the file is not such a file, insists on code, or asks for more memory than its size explains.
    """
    try:
        with _memory_for(path):
            # Files older than PyTorch 1.6 are not archives: they cannot be listed or mapped, only read as a whole.
            archive = zipfile.is_zipfile(path)
            unsafe_names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if archive else []
            with torch.serialization.safe_globals([(Inert, name) for name in unsafe_names]):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except MemoryError as error:
        raise WeightsError(f"{path}: asks for far more memory than a checkpoint of its size needs") from error
    except Exception as error:  # PyTorch's unpickler believes what it reads, and fails in any way
        raise WeightsError(
            f"{path}: cannot be read as a checkpoint of tensors ({first_line(error)})"
        ) from error
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("state_dict", {}), Mapping):
        raise WeightsError(f"{path}: holds {type(checkpoint).__name__} instead of named tensors")
    return checkpoint


_SPARE = 256 << 20  # bytes


@contextmanager
def _memory_for(path: Path) -> Iterator[None]:
    """Inside, this process gets no more memory than a file of this size can need: it once as it is, and once read."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + 2 * path.stat().st_size + _SPARE
    if before != resource.RLIM_INFINITY:
        limit = min(limit, before)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))


# Random -----------------------------------------------------------------------------------------------------


def _random(seed: str, source: str, model: ModelConfig) -> Weights:
    """Made-up weights under which every activation has about unit size, so that FP16 holds them all.

    The same seed gives the same weights on every machine and whatever the version of PyTorch: each tensor is
    drawn by NumPy from a stream of its own.
    """
    if not seed.isdigit():
        raise WeightsError(f"{source}: the seed must be a whole number, as in random:0")

    def read(network: Network) -> tuple[dict[str, Tensor], str]:
        shapes = {k: tuple(v.shape) for k, v in make_network(network, model).state_dict().items()}
        # NumPy draws without holding Python's lock: a full-size network takes its time on one core.
        with ThreadPoolExecutor() as pool:
            drawn = pool.map(lambda k: _draw(int(seed), f"{network}.{k}", shapes[k]), shapes)
            return dict(zip(shapes, drawn, strict=True)), source

    architecture = model.to_json()
    facts = [int(seed), *(architecture[network] for network in networks_of(model))]
    return Weights(source, "random", _identity(facts), model, read)


def _draw(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    value = generator.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:  # preserve variance from input to output
        return torch.from_numpy(value).mul_(float(np.prod(shape[1:])) ** -0.5)
    return torch.as_tensor(value).mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)
