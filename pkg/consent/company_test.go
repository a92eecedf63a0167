package consent_test

import "testing"

func TestTheCompanyOfAnAccountIsRemembered(t *testing.T) {
	t.Parallel()
	kv := bucket(t)
	l := open(kv, hashKey, 0)
	if got, err := l.Company(t.Context(), "api-1"); got != "" || err != nil {
		t.Errorf("Company = %q, %v before anybody told; want none", got, err)
	}
	for account, company := range map[string]string{"api-1": "MDc6Q29tcGFueTI", "api-2": "other"} {
		if err := l.Remember(t.Context(), account, company); err != nil {
			t.Fatal(err)
		}
	}
	again := open(kv, hashKey, 0)
	if got, err := again.Company(t.Context(), "api-1"); got != "MDc6Q29tcGFueTI" || err != nil {
		t.Errorf("Company = %q, %v; want the one that was remembered", got, err)
	}
}
