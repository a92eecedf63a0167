package ingest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"attentive.internal/pkg/sandbox/journal"
	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Key files in the data directory. The public one is for the sender's configuration.
const (
	privateFile = "pgp-private.asc"
	publicFile  = "pgp-public.asc"
)

// openKey reads the private key in dir, making it and the public file when there
// is none. It returns the armored public key too.
func openKey(dir string) (openpgp.EntityList, string, error) {
	path := filepath.Join(dir, privateFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeKey(path); err == nil {
			text, err = os.ReadFile(path)
		}
	}
	if err != nil {
		return nil, "", fmt.Errorf("pgp key: %w", err)
	}
	keys, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(text))
	if err != nil || len(keys) == 0 {
		return nil, "", fmt.Errorf("pgp key %q: %w; remove the file to get a new one", path, err)
	}
	public, err := armored(openpgp.PublicKeyType, keys[0].Serialize)
	if err == nil {
		err = journal.Replace(filepath.Join(dir, publicFile), func(w io.Writer) error {
			_, err := io.WriteString(w, public)
			return err
		})
	}
	return keys, public, err
}

// makeKey writes a new private key: Curve25519, which GnuPG 2.2 reads too.
func makeKey(path string) error {
	entity, err := openpgp.NewEntity("Attentive sandbox", "", "sandbox@example.com", &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA, Curve: packet.Curve25519, DefaultCipher: packet.CipherAES256,
	})
	if err != nil {
		return err
	}
	text, err := armored(openpgp.PrivateKeyType, func(w io.Writer) error { return entity.SerializePrivate(w, nil) })
	if err != nil {
		return err
	}
	return journal.Replace(path, func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}

func armored(kind string, serialize func(io.Writer) error) (string, error) {
	var text strings.Builder
	w, err := armor.Encode(&text, kind, nil)
	if err != nil {
		return "", err
	}
	if err := errors.Join(serialize(w), w.Close()); err != nil {
		return "", err
	}
	return text.String() + "\n", nil
}

// plain returns the text of a file: decrypted when its name or its first bytes
// say that it is encrypted. Damage shows as an error at the end of the text.
func (s *Store) plain(name string, r io.Reader) (text io.Reader, encrypted bool, err error) {
	file := bufio.NewReaderSize(r, 64<<10)
	first, err := file.Peek(16)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	const armorStart = "-----BEGIN PGP "
	byteOrderMark := bytes.HasPrefix(first, []byte("\xEF\xBB\xBF"))
	isArmored := bytes.HasPrefix(first, []byte(armorStart))
	// The first byte of every OpenPGP packet has its highest bit set (RFC 9580, 4.2).
	encrypted = isArmored || len(first) > 0 && first[0] >= 0x80 && !byteOrderMark || !strings.HasSuffix(name, ".csv")
	if !encrypted {
		return file, false, nil
	}
	message := io.Reader(file)
	if isArmored {
		block, err := armor.Decode(file)
		if err != nil {
			return nil, true, fmt.Errorf("read armor: %w", err)
		}
		message = block.Body
	}
	details, err := openpgp.ReadMessage(message, s.key, nil, nil)
	if err != nil {
		return nil, true, fmt.Errorf("decrypt with the sandbox's key: %w", err)
	}
	return details.UnverifiedBody, true, nil
}
