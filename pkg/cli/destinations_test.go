package cli_test

import (
	"strings"
	"testing"
)

func TestDestinationsArePausedAndResumed(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.execute("destinations").expect(t, 0, "acme-attributes", "default,queries")
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"pause", "acme"}, 2, `required flag(s) "because" not set`},
		{[]string{"pause", "acne", "--because", "x"}, 2, `destination "acne"`},
		{[]string{"resume", "A cme"}, 2, "is no id of a destination"},
		{[]string{"pause", "acme", "--because", "wrong list", "--as", "ann@desk"}, 0, "acme is paused: its messages wait"},
		{[]string{"pause", "acme", "--because", "lunch"}, 0, "paused by ann@desk since "},
		{nil, 0, ": wrong list"},
		{[]string{"--json"}, 0, `"why":"wrong list"`},
		{[]string{"resume", "acme", "--as", "bob@desk"}, 0, "acme goes on: it was paused by ann@desk"},
		{[]string{"resume", "acme"}, 0, "it was not paused"},
	} {
		m.execute(append([]string{"destinations"}, tt.args...)...).expect(t, tt.code, tt.want)
	}
	if r := m.execute("destinations"); strings.Contains(r.stdout, "paused by") {
		t.Errorf("still paused: %v", r)
	}
	r := m.execute("actions")
	r.expect(t, 0, "ann@desk", "pause destination acme", "wrong list", "it was paused already", "bob@desk", "resume destination acme", "begins")
	if n := strings.Count(m.execute("actions", "--json").stdout, "\n"); n != 8 {
		t.Errorf("%d entries, want two for each of four actions: %v", n, r)
	}
	if r := m.execute("actions", "--since", "0s", "--json"); r.stdout != "" {
		t.Errorf("since now = %v", r)
	}
}

func TestDestinationsSaysWhoMayUseWhat(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nowhere) // no broker is needed
	d.execute("destinations", "--policy", "datagrid-operator").expect(t, 0, "acme             default   yes")
	d.execute("destinations", "--policy", "amp360-user").expect(t, 0, "no: business_users")
	d.execute("destinations", "--policy", "datagrid-operator", "--restricted-pii").expect(t, 0, "no: restricted_pii")
	d.execute("destinations", "--service", "--json").expect(t, 0,
		`"destination":"acme","template":"default","orchestration":"yes","campaign":"yes"`,
		`"template":"queries","orchestration":"yes","campaign":"access denied by rule campaigns`)
	d.execute("destinations", "--policy", "king").expect(t, 2, `--policy "king": there is no such policy; known are datagrid-operator`)
	d.execute("destinations", "--restricted-pii").expect(t, 2, "add --policy")
	d.execute("destinations").expect(t, 4)
}
