"""Encryption of what is stored: AES-256-GCM with a key of its own for each namespace.

1. A random data key encrypts a namespace. It is stored once, in the cell `quire:keyring`, wrapped by a key that HKDF derives
   from the master key and the namespace. Changing the master key is one compare-and-set of that cell: whoever is killed
   in between leaves the old one or the new one.
2. What is encrypted is bound to its place (namespace, stream, version, ...) as associated data: moved, it does not decrypt.
3. No nonce is used twice with a key: nonces are 96 random bits, and every stream has a key of its own, derived from the
   data key. A collision would take about 2**32 records of one stream before its odds reach 2**-33.
4. Cells are compared by the backend within, so equal values of one cell must be stored equal: AES-SIV, which is made for
   that, tells nobody more than that a cell holds what it held before.
5. Chains, digests and names of blobs are hashes of plain content: whoever sees one can try guesses against it. So they
   are encrypted too, chains and digests length for length: AES-XTS, on values that are hashes and do not repeat.

Visible without the key: names of streams and cells, numbers of versions, times, authors, messages, kinds, sizes.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from functools import lru_cache

import msgspec

from quire.errors import CorruptRecord, Denied, InvalidKey, Unsupported
from quire.model import Keyframe, Record
from quire.storage.base import Backend, CellWrite, Committed, Item
from quire.storage.wrap import KEYRING
from quire.storage.wrap._around import Around, claim_cell

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError as cause:
    raise Unsupported(
        "encryption needs the package cryptography: pip install 'quire[encryption]'", capability="encryption"
    ) from cause

KEY_BYTES = 32
FORMAT = 1
_NONCE_BYTES = 12
_SIV_BYTES = 64
_CACHED_KEYS = 4096
_CACHED_CHAINS = 16384
_BLOB = "e-"
"""How the stored names of blobs begin."""

_json = msgspec.json.Encoder().encode


class _Keyring(msgspec.Struct, frozen=True):
    """The wrapped data key. key: names the master key, without telling it."""

    format: int
    key: str
    wrapped: str


def new_key() -> bytes:
    """Return a fresh master key of 32 random bytes. Whoever loses it loses the data."""
    return os.urandom(KEY_BYTES)


def _derive(key: bytes, *info: object, length: int = KEY_BYTES) -> bytes:
    """Return a key derived from another by HKDF-SHA256 (RFC 5869); `info` says what for."""
    return HKDF(hashes.SHA256(), length, None, _json(["quire", FORMAT, *info])).derive(key)


def key_id(key: bytes) -> str:
    """Return the name of a master key: 16 hex digits that tell nothing of it."""
    return _derive(key, "name", length=8).hex()


def _checked(key: object) -> bytes:
    if type(key) is not bytes or len(key) != KEY_BYTES:
        found = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise InvalidKey(f"the encryption key is {found}; it must be 32 random bytes, such as new_key() makes")
    return key


def _wrap(master: bytes, namespace: str, data_key: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    place = _json([namespace, "data key", key_id(master)])
    wrapped = nonce + AESGCM(_derive(master, "wrap", namespace)).encrypt(nonce, data_key, place)
    return _json(_Keyring(FORMAT, key_id(master), b64encode(wrapped).decode()))


def _unwrap(master: bytes, namespace: str, stored: bytes) -> bytes:
    try:
        ring = msgspec.json.decode(stored, type=_Keyring)
        wrapped = b64decode(ring.wrapped, validate=True)
    except (msgspec.MsgspecError, ValueError) as cause:
        raise CorruptRecord(f"the keyring of {namespace} is damaged ({cause}); restore a backup", at=KEYRING) from cause
    if ring.key != key_id(master):
        raise Denied(
            f"namespace {namespace} is encrypted with the key {ring.key}, not with {key_id(master)}: give that one"
        )
    place = _json([namespace, "data key", ring.key])
    try:
        cipher = AESGCM(_derive(master, "wrap", namespace))
        return cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], place)
    except (InvalidTag, ValueError) as cause:
        raise CorruptRecord(f"the keyring of {namespace} does not decrypt; restore a backup", at=KEYRING) from cause


async def open_encrypted(inner: Backend, *, namespace: str, key: bytes) -> Encrypted:
    """Return a backend that encrypts what it stores in `inner`, an open handle on the same namespace.

    key: the master key, 32 random bytes.
    Raises InvalidKey for anything else, Denied for another key than the namespace was begun with and for a
    namespace that holds plain data, Unsupported without the package `cryptography`.
    """
    _checked(key)
    found = await inner.cell(KEYRING)
    if found is None and (await inner.streams(limit=1) or await inner.blobs(limit=1) or await inner.cells(limit=1)):
        found = await inner.cell(KEYRING)  # what is there may be of somebody who began to encrypt it meanwhile
        if found is None:
            raise Denied(
                f"namespace {namespace} holds data that is not encrypted: open it without a key, "
                "or copy it to a new store that has one"
            )
    if found is None:
        stored = await claim_cell(inner, KEYRING, _wrap(key, namespace, os.urandom(KEY_BYTES)))
    else:
        stored = found.value
    return Encrypted(inner, namespace, _unwrap(key, namespace, stored))


async def opens(inner: Backend, *, namespace: str, key: bytes) -> bool:
    """Tell whether this is the master key that a namespace opens with now. Raises InvalidKey, CorruptRecord."""
    _checked(key)
    found = await inner.cell(KEYRING)
    try:
        return found is not None and bool(_unwrap(key, namespace, found.value))
    except Denied:
        return False


async def rotate(inner: Backend, *, namespace: str, old: bytes, new: bytes) -> None:
    """Have a namespace open with another master key from now on. Handles that are open stay so.

    What was stored stays encrypted with the same data key: whoever had the old master key and a copy of the keyring
    can still read. If the key was stolen, copy the data to a new store instead.
    Raises InvalidKey, Denied for an old key that is not the one.
    """
    _checked(old)
    _checked(new)
    while True:
        found = await inner.cell(KEYRING)
        if found is None:
            raise Denied(f"namespace {namespace} is not encrypted: there is no key to change")
        data_key = _unwrap(old, namespace, found.value)
        write = CellWrite(KEYRING, found.value, _wrap(new, namespace, data_key))
        (outcome,) = await inner.commit([Item(cells=(write,))])
        if isinstance(outcome, Committed):
            return


class Encrypted(Around):
    """What is stored of a namespace, encrypted. Made by `open_encrypted`."""

    own = KEYRING

    def __init__(self, inner: Backend, namespace: str, data_key: bytes) -> None:
        super().__init__(inner, "bodies, states, cells and blobs are encrypted")
        self._namespace = namespace
        self._siv = AESSIV(_derive(data_key, "cells", length=_SIV_BYTES))
        self._names = AESSIV(_derive(data_key, "names", length=_SIV_BYTES))
        self._hashes = algorithms.AES(_derive(data_key, "hashes", length=64))
        self._blobs = AESGCM(_derive(data_key, "blobs"))

        @lru_cache(_CACHED_KEYS)
        def cipher(area: str, stream: str) -> AESGCM:
            return AESGCM(_derive(data_key, area, stream))

        self._cipher = cipher
        self._hidden = lru_cache(_CACHED_CHAINS)(self._hide)
        self._shown = lru_cache(_CACHED_CHAINS)(self._show)

    def _place(self, *what: object) -> bytes:
        """Return the associated data that binds something to where it is stored."""
        return _json(["quire", FORMAT, self._namespace, *what])

    @staticmethod
    def _seal(cipher: AESGCM, data: bytes, place: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + cipher.encrypt(nonce, data, place)

    @staticmethod
    def _unseal(cipher: AESGCM, stored: bytes, place: bytes, what: str) -> bytes:
        try:
            return cipher.decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], place)
        except (InvalidTag, ValueError) as cause:
            raise _altered(what) from cause

    def _hide(self, hash_: bytes) -> bytes:
        encryptor = Cipher(self._hashes, modes.XTS(bytes(16))).encryptor()
        return encryptor.update(hash_) + encryptor.finalize()

    def _show(self, stored: bytes) -> bytes:
        decryptor = Cipher(self._hashes, modes.XTS(bytes(16))).decryptor()
        return decryptor.update(stored) + decryptor.finalize()

    # hooks

    def store_chain(self, chain: bytes, version: int) -> bytes:
        """Hide a chain; that of no version at all is no secret."""
        return self._hidden(chain) if version else chain

    def load_chain(self, chain: bytes, version: int) -> bytes:
        """Show a chain. One that was altered comes out as another, which the chain check finds."""
        return self._shown(chain) if version else chain

    def store_body(self, r: Record) -> bytes:
        """Encrypt a body."""
        return self._seal(self._cipher("records", r.stream), r.body, self._place("record", r.stream, r.version))

    def load_body(self, r: Record) -> bytes:
        """Decrypt a body."""
        place = self._place("record", r.stream, r.version)
        return self._unseal(self._cipher("records", r.stream), r.body, place, f"{r.stream} v{r.version}")

    def store_keyframe(self, k: Keyframe) -> Keyframe:
        """Encrypt a state."""
        body = self._seal(self._cipher("keyframes", k.stream), k.body, self._frame_place(k, k.chain, k.digest))
        return Keyframe(k.stream, k.version, self._hidden(k.chain), k.size, self._hidden(k.digest), body)

    def load_keyframe(self, k: Keyframe) -> Keyframe:
        """Decrypt a state."""
        chain, digest = self._shown(k.chain), self._shown(k.digest)
        place = self._frame_place(k, chain, digest)
        body = self._unseal(self._cipher("keyframes", k.stream), k.body, place, f"the keyframe {k.stream}@{k.version}")
        return Keyframe(k.stream, k.version, chain, k.size, digest, body)

    def _frame_place(self, k: Keyframe, chain: bytes, digest: bytes) -> bytes:
        return self._place("keyframe", k.stream, k.version, k.size, chain.hex(), digest.hex())

    def store_cell(self, name: str, value: bytes) -> bytes:
        """Encrypt a value, the same way each time."""
        return self._siv.encrypt(value, [self._place("cell", name)])

    def load_cell(self, name: str, value: bytes) -> bytes:
        """Decrypt a value."""
        return self._siv_out(self._siv, value, self._place("cell", name), f"the cell {name}")

    @staticmethod
    def _siv_out(cipher: AESSIV, stored: bytes, place: bytes, what: str) -> bytes:
        try:
            return cipher.decrypt(stored, [place])
        except (InvalidTag, ValueError) as cause:
            raise _altered(what) from cause

    def store_blob(self, name: str, data: bytes) -> bytes:
        """Encrypt bytes."""
        return self._seal(self._blobs, data, self._place("blob", name))

    def load_blob(self, name: str, data: bytes) -> bytes:
        """Decrypt bytes."""
        return self._unseal(self._blobs, data, self._place("blob", name), f"the blob {name}")

    async def own_counts(self) -> tuple[int, int]:
        """The keyring."""
        return 1, 0

    # blobs, whose names are hidden too

    def name_in(self, name: str) -> str:
        """Hide a name, the same way each time."""
        return _BLOB + urlsafe_b64encode(self._names.encrypt(name.encode(), [self._place("name")])).decode()

    def _name_out(self, stored: str) -> str:
        try:
            data = urlsafe_b64decode(stored.removeprefix(_BLOB).encode())
        except ValueError as cause:
            raise _altered(f"the blob {stored}") from cause
        return self._siv_out(self._names, data, self._place("name"), f"the blob {stored}").decode()

    async def put_blob(self, name: str, data: bytes) -> None:
        """Encrypt and keep bytes, and hide their name."""
        await self.inner.put_blob(self.name_in(name), self.store_blob(name, data))

    async def blob(self, name: str) -> bytes | None:
        """The bytes, or None."""
        found = await self.inner.blob(self.name_in(name))
        return None if found is None else self.load_blob(name, found)

    async def drop_blob(self, name: str) -> None:
        """Remove it; absent is fine."""
        await self.inner.drop_blob(self.name_in(name))

    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names, sorted. Cost: reads all of them, because they are stored in another order."""
        names: list[str] = []
        stored = ""
        while page := await self.inner.blobs(after=stored):
            names += map(self._name_out, page)
            stored = page[-1]
        return sorted(name for name in names if name > after)[:limit]


def _altered(what: str) -> CorruptRecord:
    return CorruptRecord(
        f"{what} does not decrypt with the key of this store: it was altered, moved or never encrypted; "
        "`quire verify` lists all damage, a backup has the rest",
        at=what,
    )
