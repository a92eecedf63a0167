package sftpd

import (
	"bytes"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"attentive.internal/pkg/sandbox/journal"
	"golang.org/x/crypto/ssh"
)

// hostKey reads the host key at path, making one when there is none.
func hostKey(path string) (ssh.Signer, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeHostKey(path); err == nil {
			text, err = os.ReadFile(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("host key %q: %w; remove the file to get a new one", path, err)
	}
	return signer, nil
}

func makeHostKey(path string) error {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(private, "attentive sandbox")
	if err != nil {
		return err
	}
	return journal.Replace(path, func(w io.Writer) error { return pem.Encode(w, block) })
}

// HostKey returns the public host key as in a known_hosts file, without host.
func (s *Server) HostKey() string {
	return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(s.signer.PublicKey())))
}
