package remote

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"attentive.internal/pkg/fault"
)

// knownHost decides whether a host is the configured one.
type knownHost struct {
	cfg Config
	// algorithms are those of the keys we know: a host that also has others must
	// not choose one of them.
	algorithms []string

	listed []ssh.PublicKey     // from the configuration itself
	file   ssh.HostKeyCallback // nil without a known_hosts file
	// refused is why a key was refused.
	refused error
}

// newKnownHost reads the configured host keys.
func newKnownHost(cfg Config) (*knownHost, error) {
	k := &knownHost{cfg: cfg}
	for i, line := range cfg.HostKeys {
		key, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(line))
		if err == nil && len(bytes.TrimSpace(rest)) > 0 {
			err = errors.New("more than one key in an entry")
		}
		if err != nil {
			return nil, accountError(cfg, fault.HostKeyUnknown, "host key %d: %v; write one line as ssh-keyscan prints it, without the host", i+1, err)
		}
		k.listed = append(k.listed, key)
		k.add(key.Type())
	}
	if err := k.readFile(); err != nil {
		return nil, err
	}
	if len(k.algorithms) == 0 {
		return nil, accountError(cfg, fault.HostKeyUnknown, "no host key of it is configured; %s", k.remedy())
	}
	return k, nil
}

// readFile takes this host's key types from the known_hosts file.
func (k *knownHost) readFile() error {
	if k.cfg.KnownHosts == "" {
		return nil
	}
	check, err := knownhosts.New(k.cfg.KnownHosts)
	if err != nil {
		return accountError(k.cfg, fault.HostKeyUnknown, "known hosts: %w; correct the file or its path", err)
	}
	k.file = check
	// The package tells a host's keys only in its error for a wrong one.
	mismatch, ok := errors.AsType[*knownhosts.KeyError](check(k.cfg.address(), &net.TCPAddr{}, noKey{}))
	if !ok {
		return nil
	}
	for _, known := range mismatch.Want {
		k.add(known.Key.Type())
	}
	return nil
}

// add allows the signature algorithms of a key type. ssh-rsa with SHA-1 is not
// among them.
func (k *knownHost) add(keyType string) {
	algorithms := []string{keyType}
	if keyType == ssh.KeyAlgoRSA {
		algorithms = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	for _, a := range algorithms {
		if !slices.Contains(k.algorithms, a) {
			k.algorithms = append(k.algorithms, a)
		}
	}
}

// check is the ssh.HostKeyCallback. A revocation in the file wins over a listed
// key.
func (k *knownHost) check(host string, remote net.Addr, key ssh.PublicKey) error {
	shown := fmt.Sprintf("the host shows key %s %s", key.Type(), ssh.FingerprintSHA256(key))
	if k.file != nil {
		err := k.file(host, remote, key)
		if err == nil {
			return nil
		}
		if _, revoked := errors.AsType[*knownhosts.RevokedError](err); revoked {
			k.refused = fmt.Errorf("%s, which %s revokes; ask the receiver", shown, k.cfg.KnownHosts)
			return k.refused
		}
	}
	for _, known := range k.listed {
		if bytes.Equal(known.Marshal(), key.Marshal()) {
			return nil
		}
	}
	k.refused = fmt.Errorf("%s, which is not configured; if that is the receiver's new key, %s", shown, k.remedy())
	return k.refused
}

// remedy says how to make a host known.
func (k *knownHost) remedy() string {
	return fmt.Sprintf("compare `ssh-keyscan -p %d %s` with what the receiver says its key is, and add it to host_keys", k.cfg.Port, k.cfg.Host)
}

// types lists the configured key types.
func (k *knownHost) types() string { return strings.Join(k.algorithms, ", ") }

// noKey is a key that no host has.
type noKey struct{}

func (noKey) Type() string                            { return "none" }
func (noKey) Marshal() []byte                         { return nil }
func (noKey) Verify(_ []byte, _ *ssh.Signature) error { return errors.New("not a key") }
