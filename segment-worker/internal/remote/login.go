package remote

import (
	"errors"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"attentive.internal/pkg/fault"
)

// The names of RFC 4252 and RFC 4256.
const (
	methodKey         = "publickey"
	methodPassword    = "password"
	methodInteractive = "keyboard-interactive"
)

// login chooses how to log in from what the server allows. A wrong password is
// sent once: servers count, and lock accounts.
type login struct {
	password    string
	hasPassword bool
	signer      ssh.Signer // nil without a private key

	// asked is true once the server has said what it allows; allowed is its list,
	// offered what we have tried of it.
	asked            bool
	allowed, offered []string
}

// newLogin reads the secrets.
func newLogin(cfg Config) (*login, error) {
	l := &login{}
	if cfg.Passphrase != nil {
		password, err := cfg.Passphrase()
		if err != nil {
			return nil, secretMissing(cfg, "passphrase", err)
		}
		l.password, l.hasPassword = password, true
	}
	if cfg.PrivateKey != nil {
		signer, err := readKey(cfg)
		if err != nil {
			return nil, err
		}
		l.signer = signer
	}
	if !l.hasPassword && l.signer == nil {
		return nil, accountError(cfg, fault.SecretMissing, "neither a passphrase nor a private key is configured; set one")
	}
	return l, nil
}

// readKey opens the private key.
func readKey(cfg Config) (ssh.Signer, error) {
	pem, err := cfg.PrivateKey()
	if err != nil {
		return nil, secretMissing(cfg, "private key", err)
	}
	if cfg.PrivateKeyPassphrase == nil {
		signer, err := ssh.ParsePrivateKey([]byte(pem))
		if _, encrypted := errors.AsType[*ssh.PassphraseMissingError](err); encrypted {
			return nil, accountError(cfg, fault.SecretMissing, "the private key is encrypted; configure its passphrase")
		}
		if err != nil {
			return nil, secretMissing(cfg, "private key", errors.New("is not a private key in PEM"))
		}
		return signer, nil
	}
	passphrase, err := cfg.PrivateKeyPassphrase()
	if err != nil {
		return nil, secretMissing(cfg, "passphrase of the private key", err)
	}
	signer, err := ssh.ParsePrivateKeyWithPassphrase([]byte(pem), []byte(passphrase))
	if err != nil {
		// The library's text could quote what it read.
		return nil, secretMissing(cfg, "private key", errors.New("its passphrase does not open it"))
	}
	return signer, nil
}

// next is the ssh.ClientAuthCallback: it picks a method not used before, the
// private key first; nil when there is none left.
func (l *login) next(c *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
	l.asked, l.allowed = true, c.AllowedMethods
	switch {
	case l.signer != nil && l.may(methodKey):
		l.offered = append(l.offered, methodKey)
		return ssh.PublicKeys(l.signer), nil
	case l.hasPassword && !l.sentPassword() && l.may(methodPassword):
		l.offered = append(l.offered, methodPassword)
		return ssh.Password(l.password), nil
	case l.hasPassword && !l.sentPassword() && l.may(methodInteractive):
		l.offered = append(l.offered, methodInteractive)
		return ssh.KeyboardInteractive(l.answer), nil
	}
	return nil, nil
}

// may reports whether the server allows a method that was not used before.
func (l *login) may(method string) bool {
	return slices.Contains(l.allowed, method) && !slices.Contains(l.offered, method)
}

// sentPassword reports whether the one try is spent.
func (l *login) sentPassword() bool {
	return slices.Contains(l.offered, methodPassword) || slices.Contains(l.offered, methodInteractive)
}

// answer gives the password to the one question that hides its answer.
func (l *login) answer(_, _ string, questions []string, echos []bool) ([]string, error) {
	answers := make([]string, len(questions))
	for i, echo := range echos {
		if !echo {
			answers[i] = l.password
		}
	}
	return answers, nil
}

// refusal says what the server made of our attempts.
func (l *login) refusal() string {
	if len(l.offered) == 0 {
		return "the server takes only " + strings.Join(l.allowed, ", ") + ", and nothing of that is configured; configure what the receiver asks for"
	}
	return "the server refused " + strings.Join(l.offered, " and ") + "; correct the user name or the secret, or ask the receiver to unlock the account"
}
